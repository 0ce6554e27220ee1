// Package layout holds no code: its test keeps the imports between the
// project's packages running downward, as ARCHITECTURE.md states them.
package layout
