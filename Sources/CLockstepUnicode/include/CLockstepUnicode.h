/* Nothing is called from here: unicode.c replaces a part of the Swift standard library when the C library is linked. */
