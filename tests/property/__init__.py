"""Models of protocols, walked through."""
