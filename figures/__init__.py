"""What takes too long to run in a chapter: recorded once, with where and when."""
