"""What maintainers run: the tables of the model zoo and the data of the demo."""
