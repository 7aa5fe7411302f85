"""What every method does before it trains and after: layers, folds, inputs, the record."""
