// SPDX-License-Identifier: GPL-2.0-or-later
//
// Tells user space of sockets that begin to listen, are bound, or are closed, through a ring buffer.
//
// Only sockets of the network namespace `own_namespace` and on the ports of `ports` are told of, so that nobody is
// woken by others. It is built on plain <linux/bpf.h>: no libbpf, no BTF of the kernel. Contexts are read through
// `volatile`, because the compiler may otherwise merge or widen the loads, which the verifier refuses.

#include <linux/bpf.h>

#define SEC(name) __attribute__((section(name), used))
#define read(field) (*(volatile typeof(field) *)&(field))

static void *(*map_lookup)(void *map, const void *key) = (void *)BPF_FUNC_map_lookup_elem;
static long (*map_update)(void *map, const void *key, const void *value, __u64 flags) =
	(void *)BPF_FUNC_map_update_elem;
static long (*map_delete)(void *map, const void *key) = (void *)BPF_FUNC_map_delete_elem;
static __u64 (*current_pid_tgid)(void) = (void *)BPF_FUNC_get_current_pid_tgid;
static __u64 (*socket_cookie)(void *context) = (void *)BPF_FUNC_get_socket_cookie;
static __u64 (*namespace_cookie)(void *context) = (void *)BPF_FUNC_get_netns_cookie;
static void *(*ring_reserve)(void *ring, __u64 size, __u64 flags) = (void *)BPF_FUNC_ringbuf_reserve;
static void (*ring_submit)(void *data, __u64 flags) = (void *)BPF_FUNC_ringbuf_submit;

// linux/socket.h, linux/in.h, net/tcp_states.h.
enum { AF_INET = 2, AF_INET6 = 10, TCP = 6, UDP = 17 };
enum { OPENED = 1, CLOSED = 2 };

// What user space reads; see events/record.rs.
struct event {
	__u64 cookie;
	__u64 namespace;
	__u32 address[4];
	__u32 pid;
	__u16 port;
	__u8 kind;
	__u8 protocol;
	__u8 family;
	__u8 unused[7];
};

// A bound socket on a port of interest. Each word is written to the stack as a whole: without CAP_PERFMON, Linux 6.1 and
// others refuse to change a part of a word that the verifier keeps track of ("attempt to corrupt spilled pointer").
struct bound {
	__u64 namespace;
	// The process (32 bits), the port (16), the protocol (8), and whether user space was told of it.
	__u64 facts;
};

static __attribute__((always_inline)) __u64 facts(__u32 pid, __u16 port, __u8 protocol, __u8 told)
{
	return pid | (__u64)port << 32 | (__u64)protocol << 48 | (__u64)told << 56;
}

// The cookie of the network namespace whose sockets matter; 0: any.
SEC(".rodata") volatile const __u64 own_namespace = 0;

struct {
	int (*type)[BPF_MAP_TYPE_RINGBUF];
	int (*max_entries)[256 * 1024];
} events SEC(".maps");

// Events for which the ring buffer had no room.
struct {
	int (*type)[BPF_MAP_TYPE_ARRAY];
	int (*max_entries)[1];
	__u32 *key;
	__u64 *value;
} lost SEC(".maps");

// A bit for each port of interest: 65,536 of TCP, then as many of UDP.
struct {
	int (*type)[BPF_MAP_TYPE_ARRAY];
	int (*max_entries)[2 * 65536 / 64];
	__u32 *key;
	__u64 *value;
} ports SEC(".maps");

// The bound sockets, by cookie. The release of a socket does not show its port.
struct {
	int (*type)[BPF_MAP_TYPE_LRU_HASH];
	int (*max_entries)[16 * 1024];
	__u64 *key;
	struct bound *value;
} sockets SEC(".maps");

static __attribute__((always_inline)) int is_interesting(__u8 protocol, __u16 port)
{
	__u32 word = ((protocol == UDP ? 65536 : 0) + port) / 64;
	__u64 *bits = map_lookup(&ports, &word);
	return bits && (*bits >> (port % 64) & 1);
}

static __attribute__((always_inline)) struct event *begin(__u8 kind, __u64 cookie, __u64 namespace, __u64 facts)
{
	struct event *event = ring_reserve(&events, sizeof(*event), 0);
	if (!event) {
		__u32 zero = 0;
		__u64 *count = map_lookup(&lost, &zero);
		if (count)
			__sync_fetch_and_add(count, 1);
		return 0;
	}
	__builtin_memset(event, 0, sizeof(*event));
	event->cookie = cookie;
	event->namespace = namespace;
	event->pid = facts;
	event->port = facts >> 32;
	event->kind = kind;
	event->protocol = facts >> 48;
	return event;
}

// A socket was bound. One of TCP does not listen yet, so its process is only kept for when it does: on older kernels
// the program for that cannot ask for it.
static __attribute__((always_inline)) int bind(struct bpf_sock *context, __u8 family)
{
	__u32 protocol = read(context->protocol);
	__u32 port = read(context->src_port);
	if ((protocol != TCP && protocol != UDP) || !is_interesting(protocol, port))
		return 1;
	__u64 namespace = namespace_cookie(context);
	if (own_namespace && namespace != own_namespace)
		return 1;
	__u64 cookie = socket_cookie(context);
	__u32 pid = current_pid_tgid() >> 32;
	struct bound socket = { namespace, facts(pid, port, protocol, protocol == UDP) };
	map_update(&sockets, &cookie, &socket, BPF_ANY);
	if (protocol != UDP)
		return 1;
	struct event *event = begin(OPENED, cookie, namespace, socket.facts);
	if (!event)
		return 1;
	event->family = family;
	if (family == AF_INET) {
		event->address[0] = read(context->src_ip4);
	} else {
		event->address[0] = read(context->src_ip6[0]);
		event->address[1] = read(context->src_ip6[1]);
		event->address[2] = read(context->src_ip6[2]);
		event->address[3] = read(context->src_ip6[3]);
	}
	ring_submit(event, 0);
	return 1;
}

SEC("cgroup/post_bind4")
int bind_ipv4(struct bpf_sock *context)
{
	return bind(context, AF_INET);
}

SEC("cgroup/post_bind6")
int bind_ipv6(struct bpf_sock *context)
{
	return bind(context, AF_INET6);
}

// A TCP socket listens. Which of the helpers this type of program may call depends on the kernel.
static __attribute__((always_inline)) int listen(struct bpf_sock_ops *context, int knows_namespace, int knows_pid)
{
	if (read(context->op) != BPF_SOCK_OPS_TCP_LISTEN_CB)
		return 1;
	__u32 port = read(context->local_port);
	if (!is_interesting(TCP, port))
		return 1;
	__u64 cookie = socket_cookie(context);
	__u64 namespace = 0;
	__u32 pid = 0;
	struct bound *bound = map_lookup(&sockets, &cookie);
	if (bound) {
		namespace = bound->namespace;
		pid = bound->facts;
	}
	if (knows_namespace)
		namespace = namespace_cookie(context);
	if (knows_pid)
		pid = current_pid_tgid() >> 32;
	if (own_namespace && namespace && namespace != own_namespace)
		return 1;
	struct bound socket = { namespace, facts(pid, port, TCP, 1) };
	map_update(&sockets, &cookie, &socket, BPF_ANY);
	struct event *event = begin(OPENED, cookie, namespace, socket.facts);
	if (!event)
		return 1;
	__u32 family = read(context->family);
	event->family = family;
	if (family == AF_INET) {
		event->address[0] = read(context->local_ip4);
	} else {
		event->address[0] = read(context->local_ip6[0]);
		event->address[1] = read(context->local_ip6[1]);
		event->address[2] = read(context->local_ip6[2]);
		event->address[3] = read(context->local_ip6[3]);
	}
	ring_submit(event, 0);
	return 1;
}

SEC("sockops")
int listen_with_namespace_and_pid(struct bpf_sock_ops *context)
{
	return listen(context, 1, 1);
}

SEC("sockops")
int listen_with_namespace(struct bpf_sock_ops *context)
{
	return listen(context, 1, 0);
}

SEC("sockops")
int listen_alone(struct bpf_sock_ops *context)
{
	return listen(context, 0, 0);
}

SEC("cgroup/sock_release")
int release(struct bpf_sock *context)
{
	// Most sockets that are closed are connections.
	if (*(volatile __u32 *)&context->dst_port)
		return 1;
	__u64 cookie = socket_cookie(context);
	struct bound *bound = map_lookup(&sockets, &cookie);
	if (!bound)
		return 1;
	__u64 namespace = bound->namespace;
	__u64 facts = bound->facts;
	map_delete(&sockets, &cookie);
	if (!(facts >> 56))
		return 1;
	struct event *event = begin(CLOSED, cookie, namespace, facts);
	if (event)
		ring_submit(event, 0);
	return 1;
}

SEC("license") char terms[] = "GPL";
