"""Task sets as rows of data, and what loads or generates them."""
