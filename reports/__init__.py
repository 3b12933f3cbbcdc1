"""Tables and pictures of run folders, and the published figures beside them."""
