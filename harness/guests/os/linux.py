# SPDX-License-Identifier: BSD-2-Clause
"""The control guest: a small Linux and busybox (images/control), known to be good."""

from __future__ import annotations

import gzip
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.console.machinery import Machinery, Row
from harness.console.stages import stage
from harness.console.tables import ConsoleTables
from harness.errors import CannotRun, UsageError
from harness.guests.os.base import GuestOS
from harness.guests.os.definition import GuestDefinition, SourceRequest
from harness.guests.os.values import (
    Balloon,
    BalloonLimits,
    BootVolume,
    Interface,
    KernelIdentity,
    Run,
    ShutdownExpectation,
    SmallBlocks,
)
from harness.guests.source import GuestSource
from harness.images import kernelfile
from harness.lab import cpio
from harness.oracles import counters, disk_causes
from harness.xen import vdev as vdevs

# A Linux of 5 to 6 and the control guest's busybox init (images/control/init).
_STAGES = (
    # [    0.000000] Linux version 6.12.118+deb13-amd64 ...
    stage("kernel", b"Linux version", rb"Linux version \d", 60),
    # [    0.000000] Hypervisor detected: Xen PV     /    Booting paravirtualized kernel on Xen PVH
    stage("xen", b"Xen", rb"Hypervisor detected: Xen|Booting paravirtualized kernel on Xen|Booting kernel on Xen", 90),
    # [    5.3] Run /init as init process
    stage("init", b"init", rb"Run /init as init process|^FXH control guest init", 60),
    # control login:
    stage("login", b"login: ", rb"^(?:\S+ )?login: ", 0),
)

# The first line of a boot.
_BOOTS = (
    # [    0.000000] Linux version 6.12.118 ...
    stage("boot", b"] Linux version ", rb"^\r*\[ *0\.0+\](?:\[ *[TC]\d+\])? Linux version \d", 0),
)
# The kernel prints its log again when a console takes over from an early one.
# [    0.301234] printk: console [hvc0] enabled
_REPLAYED = re.compile(rb"console \[\w+\] enabled")
_MACHINERY = (
    # vpanic() since 6.17.
    Row("panic", r"v?panic(?:_on_\w+)?", "panic vpanic"),
    Row("compiler's checks", r"__stack_chk_fail(?:_local)?|__\w+_chk|_*(?:asan|msan|tsan|csan|ubsan|sanitizer|sancov)_\w+|ubsan_epilogue",
        "__stack_chk_fail __memcpy_chk __ubsan_handle_shift_out_of_bounds ubsan_epilogue __asan_load8_noabort __tsan_read4"),
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
_CONSOLE = ConsoleTables(_STAGES, boots=_BOOTS, replayed=_REPLAYED, machinery=Machinery(_MACHINERY))
_OFFLOADS = {
    "tx-checksum-ipv4": "tx", "rx-checksumming": "rx", "tcp-segmentation-offload": "tso", "scatter-gather": "sg",
}  # fmt: skip


_DEAD_BACKENDS = {"xvdk": "6"}
_SOURCES = {
    "names in a backtrace": "kernel/kallsyms.c",
    "balloon": "drivers/xen/balloon.c, balloon_process()",
    "balloon pages": "drivers/xen/balloon.c, decrease_reservation()",
    "blkfront": "drivers/block/xen-blkfront.c",
    "disk names": "drivers/block/xen-blkfront.c, xlvbd_alloc_gendisk(); xen tools/libs/light/libxl_device.c",
    "netfront": "drivers/net/xen-netfront.c",
    "console": "drivers/tty/hvc/hvc_xen.c",
    "xenbus": "drivers/xen/xenbus/xenbus_probe_frontend.c, wait_for_devices()",
    "clock": "arch/x86/xen/time.c",
    "xenstore device": "drivers/xen/xenbus/xenbus_dev_frontend.c",
    "suspend": "drivers/xen/manage.c, do_suspend()",
    "vcpus": "arch/x86/xen/smp.c",
    "memory map": "arch/x86/xen/setup.c, xen_memory_setup(); arch/x86/platform/pvh/enlighten.c",
}

# Leave out work that is slow on an emulated CPU (docs/lab.md, The cost of a boot under emulation).
# norandmaps: as in freebsd.py. rodata=off: do not visit all pages after boot to make some read-only. noreplace-smp: do not remove
# lock prefixes for a single CPU, which changes the address space twice for each of thousands. clearcpuid=4: no TSC (CPUID bit 4).
# The kernel would calibrate the TSC by a PIT that these guests lack: 100,000 reads of a port, each with a trap. Time comes from
# Xen. lpj: the length of a busy loop (roughly, per 4 ms), since without a TSC and a tick the kernel cannot measure it.
_QUICK = {"norandmaps": "", "rodata": "off", "noreplace-smp": "", "clearcpuid": "4", "lpj": "4000000"}


@dataclass(frozen=True)
class Linux(GuestOS):
    """A Linux of 5 to 6 with busybox. Its root is its initramfs."""

    types: tuple[str, ...] = ("pv", "pvh")

    name = "linux"
    title = "Linux"
    console = _CONSOLE
    panic_kind = "linux-panic"
    panic_function = "sysrq_handle_crash"
    # [   12.3] reboot: System halted
    halted = rb"reboot: System halted"
    sources = _SOURCES
    # The control guest has its files in its memory, and its kernel (6.1 more than 6.12) takes a third of 160 MiB. Targets of 0 and of
    # 2^63 are left out of the garbage: Linux has no floor and obeys them, and no toolstack writes them.
    balloon_limits = BalloonLimits(memory=160, low=0.625, small=160, large=224, dirty=0.4)
    reboot_command = "umount /mnt; reboot"
    xenstore_device = "/dev/xen/xenbus"
    tmpfs_command = "mount -t tmpfs -o size=90% tmpfs /mnt"
    # busybox's nc cannot send datagrams.
    udp_by_tftp = True
    # TSO needs scatter-gather and checksums (netdev_fix_features).
    independent_offloads = False
    obeys_no_csum = False
    # Documentation/admin-guide/sysctl/vm.rst: 1 frees the page cache.
    uncached_command = "echo 1 > /proc/sys/vm/drop_caches"
    # At a backend in state 1 it waits five minutes (wait_for_devices()) before it continues: too long for every run.
    dead_backends = _DEAD_BACKENDS
    # hda, sda and xvda have the same name, and a disk with an unknown major is refused.
    vdev_names = ("xvdb", "hdc", "hdd", "sde", "51792", "0xCA60", "d7p0", "xvdp", "xvdq", "xvdz", "xvdaa", "d1000p0")

    def command_line(self, variables: Mapping[str, str]) -> str:
        return " ".join(f"{name}={value}" if value else name for name, value in variables.items())

    def default_variables(self, root: str, emulated: bool) -> Mapping[str, str]:
        # panic=-1 would reboot at once; with 0 Xen's panic notifier reports a crash. slub_max_order: since 6.3 the first bytes of a
        # packet may cross a page border (net/core/skbuff.c, skb_small_head_cache). At a backend without feature-sg, xen-netfront
        # silently drops such packets (xennet_start_xmit()), sometimes all of a connection. tx_dropped counts them. We saw it once
        # in about ten detach/attach cycles. In slabs of one page no packet crosses a border.
        return {"console": "hvc0", "panic": "0", "slub_max_order": "0", **(_QUICK if emulated else {})}

    def disk_name(self, vdev: str) -> str:
        return vdevs.linux_disk(vdevs.number(vdev))

    def identity(self, run: Run) -> KernelIdentity:
        release, version = run("uname -r; uname -v").split("\n", 1)
        return KernelIdentity(release, release, version.strip())

    def identity_of(self, kernel: bytes) -> KernelIdentity:
        release, version = kernelfile.linux_version(kernel)
        return KernelIdentity(release, release, version)

    def variables(self, run: Run) -> Mapping[str, str]:
        return dict(word.partition("=")[::2] for word in run("cat /proc/cmdline").split())

    def root_device(self, run: Run) -> str:
        # rootfs on / type rootfs (rw,...)
        return run("mount").split(" ", 1)[0]

    def disks(self, run: Run) -> tuple[str, ...]:
        return tuple(sorted(run("ls /sys/block").split()))

    def interfaces(self, run: Run) -> tuple[Interface, ...]:
        found = []
        # Skip an interface that disappears meanwhile.
        each = 'a=$(cat $i/address 2>/dev/null) && m=$(cat $i/mtu 2>/dev/null) && echo "${i##*/} $a $m"'
        for line in run(f"for i in /sys/class/net/*; do {each}; done; true").splitlines():
            name, mac, mtu = line.split()
            found.append(Interface(name, mac, int(mtu), frozenset()))
        return tuple(found)

    def memory_mib(self, run: Run) -> int:
        # MemTotal:          97280 kB
        match = re.search(r"MemTotal:\s+(\d+) kB", run("cat /proc/meminfo"))
        return int(match[1]) >> 10 if match else 0

    def panic_command(self) -> str:
        return "echo c > /proc/sysrq-trigger"

    def flood_command(self, lines: int, width: int) -> str:
        return f"seq 1 {lines} | awk '{{printf \"%0{width}d\\n\", $1}}'"

    def disk_bytes(self, run: Run, name: str) -> int:
        return int(run(f"cat /sys/class/block/{name}/size")) * 512

    def attach_log(self, run: Run) -> str:
        return run("dmesg | grep -E 'blkfront|vbd|xvd'; true")

    def balloon(self, run: Run) -> Balloon:
        where = "/sys/devices/system/xen_memory/xen_memory0"
        uses = "Buffers|Cached|AnonPages|Slab|KernelStack|PageTables|Percpu"
        # MemFree does not count the free pages in the lists of each CPU (mm/page_alloc.c, zoneinfo_show_print()).
        lists = "awk '$1 == \"count:\" { pages += $2 } END { print pages * 4 }' /proc/zoneinfo"
        text = run(f"cat {where}/info/current_kb {where}/target_kb; grep -E '^(MemTotal|MemFree|{uses}):' /proc/meminfo; {lists}")
        # Pages of the balloon are not in MemTotal (drivers/xen/balloon.c, adjust_managed_page_count()).
        current, target, managed, free, *used = (int(number) << 10 for number in re.findall(r"\b\d+\b", text))
        return Balloon(current, target, managed, free, managed - free - sum(used))

    def cpus(self, run: Run) -> int:
        return int(run("grep -c ^processor /proc/cpuinfo"))

    def on_cpu(self, number: int, command: str) -> str:
        return f"taskset {1 << number:x} {command}"

    def holdings(self, run: Run) -> Mapping[str, int]:
        devices, interrupts = run("ls /sys/bus/xen/devices | wc -l; grep -c xen /proc/interrupts").split()
        return {"devices": int(devices), "interrupts": int(interrupts)}

    def clock_commands(self, run: Run) -> Mapping[str, str]:
        where = "/sys/devices/system/clocksource/clocksource0"
        names = run(f"cat {where}/available_clocksource").split()
        return {f"the clocksource {name}": f"echo {name} > {where}/current_clocksource" for name in names}

    def hog(self, mib: int) -> str:
        return f"( mkdir -p /hog; mount -t tmpfs -o size=100% hog /hog; dd if=/dev/zero of=/hog/f bs=1M count={mib} 2>/dev/null )"

    def address(self, run: Run, interface: str, cidr: str) -> None:
        version = 4
        if ":" in cidr:
            version = 6
            run(f"echo 0 > /proc/sys/net/ipv6/conf/{interface}/accept_dad")
        run(f"ip -{version} addr flush dev {interface}; ip addr add {cidr} dev {interface}; ip link set {interface} up")

    def add_address(self, run: Run, interface: str, cidr: str) -> None:
        run(f"ip addr add {cidr} dev {interface}")

    def network(self, interface: str) -> str:
        return f"ip addr show dev {interface}; grep -H . /sys/class/net/{interface}/statistics/*; ip route; ip -6 route; ip neigh"

    def has_ipv6(self, run: Run) -> bool:
        return run("[ ! -e /proc/sys/net/ipv6 ] || echo 1").strip() == "1"

    def set_mtu(self, run: Run, interface: str, mtu: int) -> None:
        run(f"ip link set {interface} mtu {mtu}")

    def offloads(self, run: Run, interface: str) -> Mapping[str, bool]:
        found = {}
        for line in run(f"ethtool -k {interface}").splitlines():
            # tcp-segmentation-offload: on        rx-checksumming: on [fixed]
            name, _, value = line.strip().partition(": ")
            if name in _OFFLOADS and "[fixed]" not in value:
                found[_OFFLOADS[name]] = value.startswith("on")
        return found

    def offload_command(self, interface: str, name: str, on: bool) -> str:
        return f"ethtool -K {interface} {name} {'on' if on else 'off'}"

    def checksum_errors(self, run: Run) -> int:
        return snmp_counter(run("cat /proc/net/snmp"), "Tcp:", "InCsumErrors")

    def received(self, run: Run, interface: str) -> tuple[int, int]:
        text = run(f"cat /sys/class/net/{interface}/statistics/rx_packets /proc/net/snmp")
        return int(text.split()[0]), snmp_counter(text, "Ip:", "InReceives")

    def forwarding_command(self, ipv6: bool) -> str:
        return f"echo 1 > /proc/sys/net/{'ipv6/conf/all/forwarding' if ipv6 else 'ipv4/ip_forward'}"

    def ping_command(self, address: str, seconds: int, size: int | None = None, *, whole: bool = False) -> str:
        if whole:
            raise CannotRun("needs a ping that sets DF; busybox's does not", hint="fxh run netfront --image IMAGE")
        return f"ping -c 1 -W {seconds} {'' if size is None else f'-s {size} '}{address}"

    def nc_command(self, seconds: float) -> str:
        # busybox's nc has no half-close; the peer knows the number of bytes, and closes.
        return f"timeout {int(seconds)} nc"

    def listen_words(self, address: str, port: int) -> str:
        return f"-p {port}"

    def netfront_queues(self, vcpus: int, variables: Mapping[str, str]) -> int:
        return vcpus

    def network_counters(self, interface: str) -> str:
        # All counters of snmp6 are listed, most of them are 0.
        files = "cat /proc/net/snmp /proc/net/netstat /proc/net/dev; grep -v '[^0-9]0$' /proc/net/snmp6 2>/dev/null"
        return f'{files}; read -r f < /sys/class/net/{interface}/flags; echo "interface_up $((f & 1))"'

    def parse_counters(self, text: str, interface: str) -> Mapping[str, int]:
        return counters.linux(text, interface)

    disk_counters = 'for d in /sys/block/*; do echo "disk ${d##*/} $(cat $d/stat)"; done; dmesg | tail -n 20'

    def requests_in_flight(self, text: str) -> Mapping[str, int]:
        return disk_causes.linux_in_flight(text)

    def sha256_command(self, path: str) -> str:
        return f"sha256sum {path}"

    @property
    def small_blocks(self) -> SmallBlocks:
        # ext2 with blocks of 1 KiB has 12 direct ones and 256 addresses in an indirect one.
        return SmallBlocks("mke2fs -b 1024 /dev/{0} >/dev/null && mount -t ext2 /dev/{0} /mnt", 12 << 10, (12 + 256) << 10)

    def alternate(self, kernel: bytes, ramdisk: bytes | None, running: str) -> tuple[bytes, str]:
        if ramdisk is None:
            raise UsageError("the control guest has no ramdisk", hint="give a directory with vmlinuz and initrd: --control DIR")
        # The kernel unpacks concatenated archives in turn (Documentation/driver-api/early-userspace/buffer-format.rst).
        mark = cpio.archive({"etc/fxh-twin": (0o644, b"B\n")})
        return ramdisk + gzip.compress(mark, mtime=0), "B"

    def build_mark(self, run: Run) -> str:
        return run("cat /etc/fxh-twin 2>/dev/null || echo A")

    def boot_volume(self, run: Run, disk: str) -> BootVolume:
        # The ramdisk is replaced, since the kernel is compressed.
        run(f"mount | grep -q ' /mnt ' || mount -t ext2 /dev/{disk} /mnt")
        change = "s|fxh.menu=one|fxh.menu=two|"
        return BootVolume("/mnt/boot/grub/menu.lst", "/mnt/boot/initrd", "ramdisk", "/mnt/boot/vmlinuz", change)

    def flood_lines(self, guest_type: str, *, serial: bool) -> int:
        # Each event of a PVH guest exits to Xen: 80 kB/s. A PV guest prints 400 kB/s; 3 MB fill the console ring fifteen hundred times.
        return {"pvh": 200, "pv": 300}.get(guest_type, 1000)

    def fate(self, control: str, guest_type: str) -> ShutdownExpectation:
        source = "Linux drivers/xen/manage.c, shutdown_handlers"
        match control:
            case "poweroff" | "halt":
                return ShutdownExpectation("poweroff", why=source)
            case "reboot":
                return ShutdownExpectation("reboot", why=source)
        return ShutdownExpectation("", why=f"{source}: they do not contain {control!r}")

    def fate_of_panic(self, guest_type: str) -> ShutdownExpectation:
        return ShutdownExpectation("crash", why="Linux arch/x86/xen/enlighten.c, xen_panic_event")


def snmp_counter(text: str, protocol: str, name: str) -> int:
    """The counter ``name`` of ``protocol`` (``Tcp:``) in the text of /proc/net/snmp, of a guest or of dom0."""
    names, values = (line.split() for line in text.splitlines() if line.startswith(protocol))
    return int(values[names.index(name)])


def from_directory(directory: Path) -> GuestSource:
    """The control guest of a ``directory`` with vmlinuz and initrd; one that was built for a lab also has both unpacked."""
    unpacked = directory / "vmlinux", directory / "initrd.cpio"
    return GuestSource(
        "control",
        Linux(),
        directory / "vmlinuz",
        directory / "initrd",
        memory=96,
        unpacked=unpacked if all(path.exists() for path in unpacked) else None,
    )


def _find(request: SourceRequest) -> GuestSource | None:
    return from_directory(request.control()) if request.control else None


GUEST = GuestDefinition("control", Linux, "the control guest", types=("pv", "pvh"), find=_find, option="--guest control")
