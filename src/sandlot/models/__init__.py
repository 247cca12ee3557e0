"""Language models behind one call, `Model.complete`."""
