"""What ``kdtable doctor`` examines: the machine, and on one device whether training there does what it should."""
