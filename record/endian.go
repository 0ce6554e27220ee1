//go:build armbe || arm64be || m68k || mips || mips64 || mips64p32 || ppc || ppc64 || s390 || s390x || shbe || sparc || sparc64

package record

// Records are read by casting little-endian bytes. This constant does not fit
// its type, so that a big-endian build stops here with a name that says why.
const thisPackageNeedsALittleEndianHost uint8 = 256
