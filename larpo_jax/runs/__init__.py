"""All runs below a directory: listed, filtered, sorted."""
