/*
 * A PVH guest that does what FreeBSD's xen_start32 does: EFER.LME first, CR4.PAE next, with a #VMEXIT in between
 * (Xen intercepts accesses to CR4). It then says so on Xen's debug port and reboots by a triple fault.
 */
	.section .note.Xen, "", @note
	.long	4, 4, 18			/* XEN_ELFNOTE_PHYS32_ENTRY */
	.asciz	"Xen"
	.long	_start

	.text
	.code32
	.globl	_start
_start:
	movl	$0xc0000080, %ecx		/* EFER */
	rdmsr
	orl	$0x100, %eax			/* LME */
	wrmsr
	movl	%cr4, %eax
	orl	$0x20, %eax			/* PAE */
	movl	%eax, %cr4
	movl	$text, %esi
1:	lodsb
	testb	%al, %al
	jz	2f
	outb	%al, $0xe9
	jmp	1b
2:	lidt	none
	int3
none:	.word	0
	.long	0
text:	.asciz	"fxh: LME before PAE survived\n"
