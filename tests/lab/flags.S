# Ends with 1 when there is rubbish in the flags behind cmpxchg16b, with 0 when there is none.
	.globl _start
_start:
	movl	$0x5a5a5a5a, %esi
	pushfq
	popfq
	jmp	1f
1:	addq	%rsi, %rdi
	cmpxchg16b	pair(%rip)
	pushfq
	popq	%rax
	xorl	%edi, %edi
	testl	$~0xed7, %eax
	setnz	%dil
	movl	$60, %eax
	syscall
	.data
	.balign 16
pair:	.quad 0, 0
