"""The three tools, one a file: schema beside behaviour."""
