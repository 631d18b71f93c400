/*
 * A small PVH kernel for Xen. It says on Xen's debug port whether its CPU started with CR4.PAE set, and asks Xen for a reboot.
 * It changes no control register. Sources: xen/include/public/arch-x86/cpuid.h, hvm/start_info.h, sched.h.
 */
	.section .note.Xen, "", @note
	.long	4, 4, 18			/* XEN_ELFNOTE_PHYS32_ENTRY */
	.asciz	"Xen"
	.long	_start

	.text
	.code32
	.globl	_start
_start:
	movl	$stack, %esp
	movl	$set, %esi
	movl	%cr4, %eax
	testl	$0x20, %eax			/* PAE */
	jnz	1f
	movl	$clear, %esi
1:	lodsb
	testb	%al, %al
	jz	2f
	outb	%al, $0xe9
	jmp	1b
2:	movl	$0x40000000, %eax
	cpuid
	cmpl	$0x566e6558, %ebx		/* "XenV" */
	jne	3f
	movl	$0x40000002, %eax
	cpuid
	movl	%ebx, %ecx			/* the MSR that places the hypercall page */
	movl	$page, %eax
	xorl	%edx, %edx
	wrmsr
	movl	$2, %ebx			/* SCHEDOP_shutdown */
	movl	$reboot, %ecx
	movl	$page + 32 * 29, %eax		/* __HYPERVISOR_sched_op */
	call	*%eax
3:	cli
	hlt
	jmp	3b

set:	.asciz	"fxh: CR4.PAE is set\n"
clear:	.asciz	"fxh: CR4.PAE is clear\n"
	.balign	4
reboot:	.long	1				/* SHUTDOWN_reboot */
	.balign	16
	.fill	64
stack:
	.balign	4096
page:	.fill	4096
