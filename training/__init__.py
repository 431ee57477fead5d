"""Token shards -> a trained, sampling transformer: index, plan, loader, model, loss, loop, checkpoint, sample."""
