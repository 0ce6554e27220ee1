// Package synthetic draws order flow at random, but not uniformly. It keeps to
// what is known of real limit order books:
//
//   - Events come in clusters: each one makes further ones likelier for a while
//     (a Hawkes process with an exponential kernel; Hawkes, Biometrika 58, 1971;
//     for order flow see Bacry, Mastromatteo and Muzy, 2015).
//   - Limit orders are placed at a distance from their side's best price that
//     falls off by a power law (Zovko and Farmer, Quantitative Finance 2, 2002).
//   - Most orders are cancelled, the young ones near the best price first.
//   - Sizes and accounts' activity have heavy tails.
//   - A reference price wanders, calm at times and restless at others, and pulls
//     the flow's sides; now and then a large order sweeps several levels.
//   - Accounts close what they hold, and never more than that.
//
// The generator is told what became of its orders, and of nothing else: with the
// same seed and the same answers it draws the same flow.
package synthetic
