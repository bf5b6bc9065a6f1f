//! What is wrong with a file, told to a person: the place, the line with a mark, the expectation and the remedy.
