"""Reviews that customers write, with the sentiment Golem finds in them."""
