/* SPDX-License-Identifier: MIT */
/*
 * Asking seccomp's filters beforehand. A sleep that was interrupted is gone on with by restart_syscall(2); a filter that
 * does not know that call would kill the thread, once it is traced no more.
 */
#include "inject_impl.h"

#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdlib.h>
#include <string.h>

#ifndef SECCOMP_RET_ACTION_FULL
#define SECCOMP_RET_ACTION_FULL 0xffff0000u
#endif

enum { GET_FILTER = 0x420c };

struct machine {
	uint32_t a, x, memory[BPF_MEMWORDS];
};

static uint32_t compute(uint32_t a, uint16_t op, uint32_t value)
{
	switch (op) {
	case BPF_ADD: return a + value;
	case BPF_SUB: return a - value;
	case BPF_MUL: return a * value;
	case BPF_DIV: return value ? a / value : 0;
	case BPF_OR: return a | value;
	case BPF_AND: return a & value;
	case BPF_XOR: return a ^ value;
	case BPF_LSH: return value < 32 ? a << value : 0;
	case BPF_RSH: return value < 32 ? a >> value : 0;
	case BPF_NEG: return 0u - a;
	default: return 0;
	}
}

static bool compare(uint32_t a, uint16_t op, uint32_t value)
{
	switch (op) {
	case BPF_JEQ: return a == value;
	case BPF_JGT: return a > value;
	case BPF_JGE: return a >= value;
	case BPF_JSET: return (a & value) != 0;
	default: return false;
	}
}

static uint32_t load(const struct machine *machine, const struct sock_filter *step, const struct seccomp_data *data)
{
	uint32_t word = 0;

	switch (BPF_MODE(step->code)) {
	case BPF_IMM: return step->k;
	case BPF_LEN: return sizeof(*data);
	case BPF_MEM: return machine->memory[step->k % BPF_MEMWORDS];
	case BPF_ABS:
		if (step->k <= sizeof(*data) - sizeof(word))
			memcpy(&word, (const char *)data + step->k, sizeof(word));
		return word;
	default: return 0;
	}
}

/* What one filter says; the kernel has checked it, and lets no jump go backwards. */
static uint32_t run(const struct sock_filter *code, size_t count, const struct seccomp_data *data)
{
	struct machine machine = {0};

	for (size_t at = 0; at < count; at++) {
		const struct sock_filter *step = &code[at];
		uint32_t value = BPF_SRC(step->code) == BPF_X ? machine.x : step->k;

		switch (BPF_CLASS(step->code)) {
		case BPF_LD: machine.a = load(&machine, step, data); break;
		case BPF_LDX: machine.x = load(&machine, step, data); break;
		case BPF_ST: machine.memory[step->k % BPF_MEMWORDS] = machine.a; break;
		case BPF_STX: machine.memory[step->k % BPF_MEMWORDS] = machine.x; break;
		case BPF_ALU: machine.a = compute(machine.a, BPF_OP(step->code), value); break;
		case BPF_JMP:
			if (BPF_OP(step->code) == BPF_JA)
				at += step->k;
			else
				at += compare(machine.a, BPF_OP(step->code), value) ? step->jt : step->jf;
			break;
		case BPF_RET: return BPF_RVAL(step->code) == BPF_A ? machine.a : step->k;
		case BPF_MISC:
			if (BPF_MISCOP(step->code) == BPF_TAX)
				machine.x = machine.a;
			else
				machine.a = machine.x;
			break;
		}
	}
	return 0; /* SECCOMP_RET_KILL */
}

/* What filter i says: 0 when it can't be read, and *last when there is none. */
static uint32_t run_filter(pid_t tid, uintptr_t i, const struct seccomp_data *data, bool *last)
{
	long count = ptrace((enum __ptrace_request)GET_FILTER, tid, i, NULL);
	struct sock_filter *code;
	uint32_t action = 0;

	*last = count < 0 && errno == ENOENT && i > 0;
	if (count <= 0)
		return 0;
	code = calloc((size_t)count, sizeof(*code));
	if (code && ptrace((enum __ptrace_request)GET_FILTER, tid, i, code) == count)
		action = run(code, (size_t)count, data) & SECCOMP_RET_ACTION_FULL;
	free(code);
	return action;
}

bool pm_filters_allow(pid_t tid, long number, uint64_t ip, const uint64_t args[6])
{
	struct seccomp_data data = {.nr = (int)number, .arch = pm_arch_audit, .instruction_pointer = ip};
	bool last = false;

	memcpy(data.args, args, sizeof(data.args));
	for (uintptr_t i = 0;; i++) {
		uint32_t action = run_filter(tid, i, &data, &last);

		if (last)
			return true;
		if (action != SECCOMP_RET_ALLOW && action != SECCOMP_RET_LOG)
			return false;
	}
}
