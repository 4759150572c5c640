"""The rules for what objects may say, one file per subject. Each takes a part of an object, its path and `report`."""
