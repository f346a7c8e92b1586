"""The parts of revision 0006, a subject each: `create` and `drop`, without the rules."""
