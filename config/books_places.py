"""Where they go, for a course of books, after config/books_names.py: in 320 of 640 tokens, eight
days of sixteen, nearly all places are noise. They come back after eight days."""

HIDDEN = [place for role in "pqrs" for place in books.VALUES[role]]
SPAN, PERIOD, SHARE, TIME = 320, 640, 0.97, 0.95
