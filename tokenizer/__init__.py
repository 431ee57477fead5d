"""What a token is: vision tokenizer, geometry of frames, text ids, sequence layout, and the shard that holds them."""
