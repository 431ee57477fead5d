"""One verb per file: each stage is a class that turns one Arrow table of media into the next."""
