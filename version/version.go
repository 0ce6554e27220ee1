// Package version tells which build of Countinghouse is running.
package version

import "runtime/debug"

// Build is the source revision, set by the linker; see the Makefile.
var Build = ""

// String returns the build's revision, or what the Go toolchain recorded of it.
func String() string {
	if Build != "" {
		return Build
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}
