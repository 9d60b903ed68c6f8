"""Attention: masks, and the forms of attention that read under them."""
