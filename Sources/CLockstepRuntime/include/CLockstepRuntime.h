/* Nothing is called from here: these files replace parts of the Swift runtime when the C library is linked. */
