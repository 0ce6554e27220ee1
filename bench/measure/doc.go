// Package measure runs benchmarks in which several systems are asked for the same,
// and says what came out: as tables for a terminal, and as JSON.
//
// A Suite is a set of cases. In each case every contestant is measured Runs times,
// in turns, so that what else goes on in the machine meets all of them; a figure is
// the median of its runs, with the lowest and the highest beside it. Where these
// ranges of two contestants overlap, the table says that the difference is not
// decided.
package measure
