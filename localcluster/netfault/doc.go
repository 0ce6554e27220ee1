// Package netfault puts a network with faults between processes on one machine:
// delays, slow links, one-way silence, partitions and cut connections.
//
// A Network has hosts, each with a loopback address of its own, and a proxy in
// front of every host that others connect to. Because a host dials from its own
// address, a proxy knows whose connection it carries, and a fault can concern
// the link from A to B without the one from B to A or from C to B. It needs
// Linux, where every address of 127.0.0.0/8 is this machine.
//
// What a link can do to a connection is what a network can do to TCP: bytes come
// late, or not until the fault is over, but never changed, out of order or with
// a hole; and a connection can break.
//
// Everything random is drawn from the seed, the link and the number of the
// connection on it, so that a run can be repeated as far as its own timing is.
package netfault
