"""From a config to committed tables and a trained model: config, plan, catalog, run, report, command line."""
