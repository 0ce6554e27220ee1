//go:build !race

#include "textflag.h"

// func release(p *atomic.Uint64, v uint64, ahead uintptr, n int)
TEXT ·release(SB), NOSPLIT, $0-32
	MOVQ p+0(FP), AX
	MOVQ v+8(FP), CX
	MOVQ ahead+16(FP), DX
	MOVQ n+24(FP), BX
	MOVQ CX, (AX)

claim:
	BYTE $0x0F; BYTE $0x0D; BYTE $0x0A             // PREFETCHW (DX)
	BYTE $0x0F; BYTE $0x0D; BYTE $0x4A; BYTE $0x40 // PREFETCHW 64(DX)
	ADDQ $128, DX
	DECQ BX
	JG   claim
	RET
