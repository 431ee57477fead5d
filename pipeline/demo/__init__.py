"""The demo: scenes drawn from exact captions, the whole line run on them, and a judge that counts what is right."""
