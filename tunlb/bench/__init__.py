"""The benchmark: tunlb beside the limit of the device, and beside what people use instead."""
