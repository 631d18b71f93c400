# SPDX-License-Identifier: BSD-2-Clause
"""Functions that every report of one kind passes through. The function to look at is the first caller outside this table.

To add a family, add a row: what it is, a pattern that a whole function name has to match, and names that it covers. A test
checks each name against its own pattern, and checks that the table leaves the functions of drivers alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """``samples``: function names, separated by blanks, as backtraces print them."""

    what: str
    pattern: str
    samples: str


FREEBSD = (
    # kdb_sysctl_panic() is what `sysctl debug.kdb.panic=1` calls: that panic is its fault, and no row names it.
    # X_db_symbol_values stands for db_trace_self_wrapper in a kernel that knows its global symbols alone.
    Row("debugger", r"db_(?:trace_\w+|fetch_ksymtab|command(?:_loop)?|trap|stack_trace|script_\w+)|X_db_symbol_values",
        "db_trace_self_wrapper db_trace_self db_trace_thread db_fetch_ksymtab db_command_loop db_trap X_db_symbol_values"),
    Row("debugger's entries", r"kdb_(?:backtrace(?:_thread)?|enter|trap|reenter\w*|break\w*|alt_break\w*|cpu_trap)|gdb_trap|stack_save\w*",
        "kdb_backtrace kdb_enter kdb_trap kdb_reenter kdb_break stack_save"),
    Row("panic", r"v?panic(?:_cpu)?|kern_reboot|kern_psignal_panic|boot", "panic vpanic kern_reboot"),
    Row("assertions", r"kassert_panic|spl_(?:panic|dumpstack|assert\w*)|vop_panic|assfail3?|v?cmn_err|zfs_panic_recover|vpanic_\w+|__assert\w*",
        "kassert_panic spl_panic vop_panic assfail assfail3 vcmn_err cmn_err zfs_panic_recover __assert"),
    Row("assertions of a subsystem", r"\w+_assert(?:_\w+)?|_?vm_map_(?:un)?lock\w*",
        "xyz_lock_assert inp_lock_assert vm_page_assert_locked vm_object_busy_assert_held _vm_map_lock vm_map_unlock_read"),
    Row("assertions of vnodes", r"assert_v(?:op|i)_\w+|vfs_badlock|vop_\w+_debug(?:pre|post)|VOP_\w+_APV|vop_\w+_pre|vop_(?:std)?(?:un)?lock|vop_sigdefer",
        "assert_vop_elocked assert_vop_locked assert_vi_locked vfs_badlock vop_lock_debugpre VOP_LOCK1_APV vop_stdlock vop_sigdefer vop_rename_pre"),
    # sys/kern/subr_ubsan.c and subr_{asan,msan,csan}.c; the compiler calls the names with two underscores.
    Row("sanitizers", r"_*k?(?:asan|msan|csan|tsan|ubsan|sanitizer|sancov)_\w+|_*(?:asan|msan|tsan|ubsan)_\w+",
        "__asan_load8_noabort __asan_storeN_noabort __msan_warning kmsan_report_hook kmsan_copyout kasan_report kcsan_copyin "
        "__tsan_read4 __ubsan_handle_shift_out_of_bounds ubsan_report __sanitizer_cov_trace_pc kasan_memcpy __asan_memset"),
    Row("UBSan's handlers", r"Handle(?:Overflow|NegateOverflow|TypeMismatch|ShiftOutOfBounds|OutOfBounds|BuiltinUnreachable|VLABound\w*"
        r"|LoadInvalidValue|InvalidBuiltin|FunctionTypeMismatch|NonnullArg|PointerOverflow|AlignmentAssumption\w*|CFIBadType)|Report|isAlreadyReported",
        "HandleOverflow HandleOutOfBounds HandleTypeMismatch HandleShiftOutOfBounds Report isAlreadyReported"),
    Row("checks of the compiler", r"__stack_chk_fail(?:_local)?|__\w+_chk|__chk_fail", "__stack_chk_fail __memcpy_chk __strcpy_chk"),
    # Every kind: a lock's own function, its slow path, its assertion, and the callbacks of its class.
    Row("mutexes", r"_{0,2}(?:mtx|thread_lock)_?\w*|mtx_\w+|_thread_lock|thread_lock_\w+",
        "__mtx_assert __mtx_lock_flags __mtx_lock_sleep __mtx_unlock_flags _mtx_lock_spin_cookie __mtx_lock_spin_flags mtx_destroy "
        "_mtx_destroy _mtx_trylock_flags_ mtx_spin_wait_unlocked _mtx_lock_indefinite_check _thread_lock thread_lock_flags_"),
    Row("reader/writer locks", r"_{0,2}(?:rw|rm|rms)_(?:\w*(?:lock|cookie|assert|destroy|init|downgrade|upgrade|wowned)\w*)",
        "__rw_wlock_hard __rw_rlock_hard _rw_wlock_cookie __rw_assert _rw_destroy _rw_runlock_cookie __rw_try_upgrade _rm_rlock "
        "_rm_wlock_debug _rm_assert rm_destroy rms_rlock rw_init_flags __rw_downgrade rw_wowned"),
    Row("sx locks", r"_{0,2}sx_\w+", "_sx_xlock _sx_xlock_hard _sx_slock_int _sx_xunlock _sx_assert sx_destroy sx_init_flags sx_try_xlock_"),
    Row("lockmgr", r"_{0,2}lockmgr_\w+|lock(?:destroy|init|mgr)|_?vn_lock(?:_pair)?|ffs_lock|assert_(?:mtx|rw|rm|sx|lockmgr)",
        "__lockmgr_args lockmgr_xlock_hard lockmgr_lock_flags _lockmgr_assert lockdestroy lockinit _vn_lock vn_lock ffs_lock assert_mtx"),
    Row("lock objects", r"lock_(?:destroy|init|delay|profile_\w+)|_?callout_(?:lock|cc_\w+|stop_safe|reset_\w+)|(?:un)?lock_(?:mtx|rw|rm|sx|lockmgr|spin)|spinlock_(?:enter|exit)|_?busdma_(?:dflt_lock|lock_mutex)",
        "lock_destroy lock_init lock_mtx unlock_mtx unlock_rw lock_delay spinlock_enter _busdma_dflt_lock busdma_lock_mutex callout_lock _callout_stop_safe callout_reset_sbt_on"),
    Row("witness", r"witness_\w+", "witness_checkorder witness_warn witness_debugger witness_unlock"),
    Row("waiting", r"sleepq_\w+|_?m?sleep(?:_\w+)?|_cv_\w*wait\w*|turnstile_\w+|propagate_priority|mi_switch|sched_switch|choosethread|ck_epoch_\w+|epoch_\w+|_epoch_\w+|_blockcount_\w+",
        "sleepq_add sleepq_wait sleepq_switch _sleep msleep_spin_sbt _cv_wait _cv_timedwait_sbt turnstile_wait propagate_priority "
        "mi_switch _epoch_enter_preempt ck_epoch_synchronize_wait sched_switch epoch_exit _blockcount_sleep"),
    Row("reference counts", r"_{0,2}refcount_\w+|zfs_refcount_\w+", "_refcount_update_saturated refcount_release_last refcount_overflow zfs_refcount_remove"),
    Row("traps", r"trap(?:_\w+)?|(?:nmi_|mchk_|dbl)?calltrap|alltraps\w*|nmi_(?:call_kdb\w*|handle_intr|calltrap)|ipi_nmi_handler|cpustop_handler\w*|isa_nmi"
        r"|dblfault_handler|mca_\w+|cmc_\w+|syscall_trap|user_trap",
        "trap trap_fatal trap_pfault trap_check calltrap nmi_calltrap mchk_calltrap alltraps alltraps_with_regs_pushed nmi_call_kdb "
        "nmi_handle_intr dblfault_handler mca_intr isa_nmi cpustop_handler"),
    # IDTVEC() of sys/amd64/amd64/exception.S and sys/i386/i386/exception.s.
    Row("vectors", r"X(?:div|dbg|nmi|bpt|ofl|bnd|ill|dna|fpusegm|dblfault|tss|missing|stk|prot|page|rsvd|fpu|align|mchk|xmm|kasan)(?:_\w+)?",
        "Xpage Xpage_pti Xdblfault Xdblfault_pti Xprot Xnmi Xmchk Xdiv Xbpt Xill"),
    Row("traps of arm64 and riscv", r"(?:do|handle)_el\d\w*_\w+|data_abort|align_abort|(?:cpu_)?exception_handler\w*|do_trap_\w+|print_registers"
        r"|print_gp_register|unhandled_exception|page_fault_handler",
        "do_el1h_sync handle_el1h_sync data_abort align_abort cpu_exception_handler_supervisor do_trap_supervisor print_registers"),
    # A fault in a page that nothing may fault on is declared here, for whatever touched the page.
    Row("page faults", r"vm_fault(?:_(?:trap|hold|lookup|fault|quick_hold_pages|nofault))?", "vm_fault vm_fault_trap vm_fault_lookup"),
    Row("allocator's checks", r"m?trash_(?:ctor|dtor|init|fini)|uma_dbg_\w+|uma_z\w+|item_(?:ctor|dtor)|cache_(?:alloc|free)(?:_retry)?"
        r"|zone_(?:alloc_item|free_item|import|release|alloc_bucket|free_bucket)\w*|(?:slab|keg)_\w+|bucket_(?:alloc|free|drain)\w*|free(?:_dbg|_domain)?|zfree|malloc(?:_\w+)?|realloc(?:f)?|contig(?:malloc|free)|memguard_\w+|redzone_\w+"
        r"|m_free(?:m|_raw)?|mb_(?:free_ext|free_notready|dupcl|ctor_\w+|dtor_\w+)|m_get(?:m2?|jcl|cl|2)?|m_clget|kmem_(?:malloc|free)",
        "trash_ctor mtrash_ctor uma_dbg_free uma_zalloc_arg uma_zfree_arg item_dtor zone_free_item zone_import zone_release slab_alloc_item slab_free_item keg_fetch_slab bucket_drain free free_dbg zfree malloc malloc_dbg "
        "realloc contigfree memguard_free redzone_check m_freem mb_free_ext m_getm2 m_clget kmem_malloc kmem_free"),
    Row("queues' checks", r"_{0,2}(?:qmd|queue)_\w+|qmd_trace_\w+", "__qmd_panic"),
)  # fmt: skip

# Copies, fills and text: whatever faults in them was called with a wrong address.
COPIES = (
    Row("copies", r"(?:__)?(?:mem(?:cpy|move|set|cmp|chr|mem)|bcopy|bzero|bcmp|explicit_bzero)(?:_\w+)?|page(?:copy|zero)\w*|sse2_pagezero|ovbcopy",
        "memcpy memcpy_erms memmove_erms memmove_std memset_erms memcmp bcopy bzero __memcpy __memmove pagezero_erms pagecopy"),
    Row("copies to and from programs", r"(?:copy(?:in|out)(?:str|_\w+)?|copyinstr\w*|copystr|copy(?:in|out)uio)"
        r"|(?:fu|su)(?:byte|word\d*|ewor\w*)\w*|casu(?:eword|word)\w*|uiomove\w*|copyout_map|generic_copy\w*|(?:copy|cpy|fsu)_fault\w*|fueword\w*",
        "copyin copyout copyout_nosmap_erms copyin_smap_std copyinstr copyinstr_smap fuword fuword32 subyte casueword32 uiomove "
        "uiomove_faultflag copy_fault fueword64"),
    Row("copies of mbufs", r"m_(?:copy\w+|append|cat|dup|pullup|adj)", "m_copydata m_copyback m_copym m_copypacket m_append m_pullup m_adj"),
    Row("text", r"str(?:n?len|n?cmp|s?n?cpy|n?cat|lcpy|lcat|n?casecmp|r?chr|n?str|sep|n?dup|spn|cspn|to\w+)(?:_\w+)?|r?index"
        r"|_?k?v?(?:s|sn|f|u)?n?r?printf\w*|vlog|putchar",
        "strlen strcmp strncmp strlcpy strcpy strchr strsep strdup index kvprintf vprintf printf snprintf vsnprintf _vprintf sprintf"),
)  # fmt: skip

LINUX = (
    Row("reports", r"dump_(?:stack|backtrace)\w*|show_(?:stack|regs|trace)\w*|_{0,2}die\w*|die(?:_\w+)?|oops_\w+|_{0,2}warn\w*|warn_slowpath\w*"
        r"|_{0,2}report_bug|(?:handle|fixup|is_valid)_bug\w*|bust_spinlocks|_{0,2}crash_kexec|nmi_panic|xen_panic_\w+|panic_on_\w+|add_taint|sched_show_task"
        r"|make_task_dead|(?:rewind_stack_)?do_exit|do_group_exit|kgdb_\w+",
        "dump_stack dump_stack_lvl dump_backtrace show_stack show_regs die __die __die_body oops_end oops_exit __warn warn_slowpath_fmt "
        "do_exit do_group_exit make_task_dead report_bug handle_bug crash_kexec __crash_kexec nmi_panic xen_panic_event sched_show_task"),
    Row("exceptions", r"(?:asm_)?exc_\w+|do_(?:error_trap|trap|invalid_op|divide_error|general_protection|double_fault|int3|page_fault|kern_addr_fault"
        r"|user_addr_fault|bad_area|mem_abort|sea|el\d\w*|translation_fault|DataAbort|PrefetchAbort)|invalid_op|divide_error|general_protection"
        r"|double_fault|(?:async_|__do_)?page_fault\w*|__do_page_fault|error_(?:entry|code|return)|no_context|_{0,2}bad_area\w*|spurious_\w*fault"
        r"|kernelmode_fixup_or_oops|(?:xen_)?asm_exc_\w+|el\d\w*_(?:sync|64_sync|abort|error)\w*|__do_kernel_fault|die_kernel_fault",
        "exc_page_fault asm_exc_page_fault exc_general_protection do_error_trap do_trap invalid_op do_invalid_op divide_error "
        "general_protection page_fault async_page_fault __do_page_fault do_page_fault page_fault_oops error_entry no_context bad_area "
        "__bad_area_nosemaphore bad_area_nosemaphore do_user_addr_fault do_kern_addr_fault kernelmode_fixup_or_oops el1h_64_sync"),
    Row("sanitizers", r"_*(?:kasan|kmsan|kcsan|kfence|hwasan)_\w+|check_region_inline|print_(?:report|address_description)\w*|check_memory_region"
        r"|_{0,2}fortify_\w*|fortify_panic|handle_overflow|val_to_string|end_report|report_(?:suspicious|invalid)_\w+|(?:__)?stack_trace_save\w*|check_preemption_disabled|debug_smp_processor_id",
        "kasan_report __kasan_report __kasan_check_read kmsan_report kcsan_report kfence_report_error print_report check_region_inline "
        "print_address_description fortify_panic __fortify_report handle_overflow check_memory_region stack_trace_save check_preemption_disabled"),
    Row("checked copies", r"usercopy_\w+|_{0,2}check_(?:object_size|heap_object|stack_object)\w*|_{0,2}copy_(?:to|from|in)_(?:user|iter|kernel)\w*|_?_?copy_(?:user|page|mc)\w*"
        r"|raw_copy_\w+|__arch_\w+_user|rep_\w+_alternative|clear_(?:user|page)\w*|_{0,2}(?:get|put)_user\w*|strn(?:len|cpy)_(?:from_)?user|csum_partial\w*"
        r"|(?:__)?mem(?:cpy|set|move)_\w+|copy_(?:to|from)_kernel_nofault\w*|string_nocheck|vsnprintf|string",
        "usercopy_abort check_stack_object __check_object_size __check_heap_object copy_user_generic_string copy_from_user _copy_to_user _copy_from_iter "
        "raw_copy_from_user rep_movs_alternative clear_page_erms copy_page csum_partial strnlen_user __get_user_4"),
    Row("lists and counts", r"_{0,2}list_(?:add|del)_\w*valid\w*|refcount_warn_saturate\w*|_{0,2}refcount_\w+|rcuref_\w+|percpu_ref_\w+|kref_\w+",
        "__list_add_valid __list_del_entry_valid __list_del_entry_valid_or_report refcount_warn_saturate __refcount_add rcuref_put_slowpath"),
    Row("allocators", r"kv?z?free(?:_\w+)?|v(?:free|malloc)|_{0,2}k[vz]?[mz]?alloc(?:_\w+)?|kmem_cache_(?:alloc|free)\w*|_{0,3}slab_\w+|___cache_free"
        r"|cache_free_debugcheck|print_trailer|object_err|check_(?:slab|object|bytes_and_report)|free_(?:debug_processing|unref_page\w*)|__free_pages\w*"
        r"|free_large_kmalloc|sk_skb_reason_drop|(?:kfree|consume|napi_consume)_skb\w*|skb_(?:over_|under_)?panic|skb_(?:put|push|pull)|skb_release_\w+|bad_page",
        "kfree kvfree vfree kmalloc __kmalloc kzalloc kmem_cache_free kmem_cache_alloc_node __slab_free ___slab_alloc object_err "
        "check_object free_debug_processing free_large_kmalloc sk_skb_reason_drop kfree_skb consume_skb skb_panic skb_over_panic skb_put skb_push bad_page"),
    Row("locks", r"_raw_(?:spin|read|write)_\w+|(?:__|_)?(?:pv_|native_)?queued_\w+_slowpath|__pv_queued_\w+|do_raw_\w+|(?:spin|rwlock)_(?:bug|dump)"
        r"|_{0,2}mutex_\w+|mutex_\w+|down(?:_\w+)?|up_(?:read|write)\w*|_{0,2}down\w*|(?:__)?rwsem_\w+|rt_mutex_\w+|(?:__)?lock_(?:acquire|release)\w*"
        r"|(?:__)?ww_mutex_\w+|lockdep_\w+|print_\w*(?:lock|bug|circular|usage)\w*|debug_(?:spin|mutex|locks|check)_\w+|__might_\w+|___might_\w+"
        r"|validate_chain|check_(?:prev\w*|noncircular|deadlock|flags)|mark_lock\w*|osq_lock|pv_(?:wait|kick)\w*|xen_(?:qlock|poll_irq)\w*",
        "_raw_spin_lock _raw_spin_lock_irqsave native_queued_spin_lock_slowpath __pv_queued_spin_lock_slowpath do_raw_spin_lock spin_bug "
        "mutex_lock __mutex_lock mutex_lock_nested down_read down_write down __down rwsem_down_read_slowpath lock_acquire __lock_acquire "
        "lockdep_rcu_suspicious print_circular_bug __might_sleep __might_resched ___might_sleep debug_spin_unlock"),
    Row("waiting", r"(?:__)?schedule(?:_(?:timeout|hrtimeout|preempt|idle|bug|rtlock)\w*)?|preempt_schedule\w*|io_schedule\w*|(?:__)?wait_for_\w+|(?:__)?folio_wait_\w+|percpu_rwsem_wait\w*|_{0,2}percpu_(?:down|up)_\w+|(?:__)?wait_on_\w+|out_of_line_wait_\w+"
        r"|bit_wait\w*|_{0,2}cond_resched|do_wait_for_\w+|smp_call_function_\w+|on_each_cpu\w*|csd_lock_wait|generic_exec_single|context_switch|__switch_to(?:_asm)?",
        "schedule __schedule schedule_timeout schedule_preempt_disabled __schedule_bug io_schedule wait_for_completion __wait_for_common "
        "smp_call_function_many_cond on_each_cpu_cond_mask __wait_on_bit out_of_line_wait_on_bit bit_wait_io wait_on_page_bit preempt_schedule_common __switch_to folio_wait_bit_common percpu_rwsem_wait __percpu_down_read"),
    Row("watchdogs", r"watchdog_(?:timer_fn|overflow_callback|hardlockup\w*|nmi\w*)|softlockup_\w+|(?:touch_)?nmi_\w+|(?:default_)?do_nmi|end_repeat_nmi|arch_trigger_\w+|trigger_\w*backtrace\w*|rcu_(?:dump|check|sched|pending|stall)\w*"
        r"|print_(?:other_)?cpu_stall\w*|check_cpu_stall|panic_on_rcu_stall|perf_event_nmi_handler|(?:khungtask|hung_task)\w*|check_hung_\w+",
        "watchdog_timer_fn watchdog_overflow_callback nmi_cpu_backtrace nmi_trigger_cpumask_backtrace nmi_handle default_do_nmi do_nmi "
        "end_repeat_nmi arch_trigger_cpumask_backtrace rcu_dump_cpu_stacks rcu_check_callbacks rcu_sched_clock_irq print_cpu_stall "
        "check_cpu_stall trigger_single_cpu_backtrace"),
    Row("interrupts", r"update_process_times|tick_\w+|_{0,2}(?:run_)?hrtimer_\w+|hrtimer_\w+|(?:asm_|__|smp_|x86_)*(?:sysvec|apic_timer_interrupt|reschedule_interrupt)\w*"
        r"|local_apic_timer_interrupt|(?:__)?(?:xen_)?(?:pv_|hvm_)?evtchn_(?:do_upcall|2l_\w+|fifo_\w+)|xen_(?:timer_interrupt|hvm_callback_vector|pv_evtchn_do_upcall|hypercall_\w+|do_hypervisor_callback)"
        r"|(?:__)?handle_(?:irq|percpu_irq|edge_irq|level_irq|fasteoi_irq)\w*|generic_handle_\w+|irq_(?:exit|enter)\w*|asm_call_\w+|common_interrupt|do_IRQ|ret_from_intr|hypercall_page|call_on_irq_stack|do_interrupt_handler|gic_handle_irq|el1_(?:irq|interrupt)",
        "update_process_times tick_sched_handle tick_nohz_handler __hrtimer_run_queues hrtimer_interrupt smp_apic_timer_interrupt "
        "sysvec_apic_timer_interrupt asm_sysvec_apic_timer_interrupt apic_timer_interrupt xen_timer_interrupt handle_percpu_irq "
        "xen_hvm_callback_vector __xen_evtchn_do_upcall xen_pv_evtchn_do_upcall handle_irq_event_percpu irq_exit_rcu hypercall_page"),
)  # fmt: skip

TABLE = FREEBSD + COPIES + LINUX
_MACHINERY = re.compile("|".join(f"(?:{row.pattern})" for row in TABLE))
# What compilers append to the name of a part or a copy of a function: xyz_poll.isra.0, xyz_poll.cold
_COPY = re.compile(r"(?:\.(?:isra|constprop|part|cold|llvm|lto_priv)(?:\.\d+)*)+$")


# Position-independent copies of Linux's functions: __pi_memcpy (arm64, and x86 since 6.15)
_POSITION_INDEPENDENT = "__pi_"


def base(function: str) -> str:
    """The name of a function in its source, without what a compiler appended or a build put before it."""
    return _COPY.sub("", function).removeprefix(_POSITION_INDEPENDENT)


def is_machinery(function: str) -> bool:
    """Whether a function is only the messenger of a fault."""
    return _MACHINERY.fullmatch(base(function)) is not None
