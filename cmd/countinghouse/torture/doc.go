// Package torture runs real storage nodes under faults and checks every promise
// that a client can see: writers append, readers read, members are replaced,
// while processes are killed and halted and the network between them misbehaves.
//
// The check rests on three things:
//
//   - Every byte of a record follows from its instrument, writer, epoch and
//     sequence number (see content), so a wrong record is recognised as such,
//     and as what it was meant to be.
//   - A ledger for each instrument notes what was opened, sent, acknowledged and
//     read. From it follows which record every sequence number must hold: see
//     the comment of ledger.
//   - At the end all faults are healed, all nodes are killed and started once
//     more, and every record is read back from every replica.
//
// A seed fixes the plan of faults, the sizes of batches and the choices of the
// readers. It does not fix the timing of processes and disks, so the same seed
// does not lead to the same history, only to the same pressure.
package torture
