"""A sample of Fashion-MNIST; README.md beside this file says what it is."""
