// Package state is the format of a driver's state region: memory that hv owns and gives to each instance of the driver in turn, so
// that a successor starts from what its predecessor knew. It has three parts:
//
//   - a journal of records, appended one by one as things happen;
//   - two checkpoints, of which one at a time is the newest; the records of the journal follow it. When the journal is full, the
//     whole state is written as the other checkpoint, and the journal starts again;
//   - words, counters that are changed in place and have no checksum.
//
// Whoever dies at any byte of any write leaves a state that was true at some moment: that of the newest checkpoint with a valid
// checksum, and of the valid records that follow it without a gap. A region in which nothing is valid is an empty state. What the
// records mean is the driver's own business; it checks them as it checks a client's requests, since a driver whose memory was
// corrupted may have written them.
//
// A Log is a region's one writer. Nothing here makes a system call.
package state
