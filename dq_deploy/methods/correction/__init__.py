"""What is corrected of a record once its layers are done."""
