/* SPDX-License-Identifier: MIT */
/*
 * Interposing in a process that is running already (`import pagemerge`): the slots by which loaded objects call a function are pointed at ours, in
 * every object now and in those that dlopen(3) brings later.  libc's calls to itself stay as they are; none of them counts on what merging changes
 * (docs/explanation/interposition.md).
 */
#include "patch.h"

#include <dlfcn.h>
#include <elf.h>
#include <link.h>
#include <string.h>
#include <sys/mman.h>

#if defined(__x86_64__)
enum { SLOT_JUMP = R_X86_64_JUMP_SLOT, SLOT_DATA = R_X86_64_GLOB_DAT };
#else
enum { SLOT_JUMP = R_AARCH64_JUMP_SLOT, SLOT_DATA = R_AARCH64_GLOB_DAT };
#endif

static const struct pm_hook *hooks;
static size_t hook_count;
static const void *own_base;

struct object {
	ElfW(Addr) base, relro_start, relro_end;
	const ElfW(Sym) *symbols;
	const char *strings;
};

static const struct pm_hook *find_hook(const char *name)
{
	for (size_t i = 0; i < hook_count; i++)
		if (strcmp(hooks[i].name, name) == 0)
			return &hooks[i];
	return NULL;
}

static void point(const struct object *object, ElfW(Addr) at, void *to)
{
	void **slot = (void **)at;
	uint64_t page = pm_page_down(at);
	bool relro = at >= object->relro_start && at < object->relro_end;

	if (*slot == to)
		return;
	if (relro && pm_mprotect((void *)page, PM_PAGE_SIZE, PROT_READ | PROT_WRITE))
		return;
	__atomic_store_n(slot, to, __ATOMIC_SEQ_CST);
	if (relro)
		pm_mprotect((void *)page, PM_PAGE_SIZE, PROT_READ);
}

static void patch_table(const struct object *object, const ElfW(Rela) *table, size_t bytes)
{
	for (size_t i = 0; table && i < bytes / sizeof(*table); i++) {
		unsigned int type = (unsigned int)ELF64_R_TYPE(table[i].r_info);

		if (type != SLOT_JUMP && type != SLOT_DATA)
			continue;
		const struct pm_hook *hook =
			find_hook(object->strings + object->symbols[ELF64_R_SYM(table[i].r_info)].st_name);
		if (hook)
			point(object, object->base + table[i].r_offset, hook->ours);
	}
}

static int patch_object(struct dl_phdr_info *info, size_t size, void *unused)
{
	struct object object = { .base = info->dlpi_addr };
	const ElfW(Rela) *jumps = NULL, *data = NULL;
	size_t jump_bytes = 0, data_bytes = 0;
	const ElfW(Dyn) *dynamic = NULL;

	(void)size;
	(void)unused;
	if ((const void *)info->dlpi_addr == own_base || strstr(info->dlpi_name, "linux-vdso"))
		return 0;
	for (int i = 0; i < info->dlpi_phnum; i++) {
		const ElfW(Phdr) *header = &info->dlpi_phdr[i];

		if (header->p_type == PT_DYNAMIC)
			dynamic = (const void *)(object.base + header->p_vaddr);
		if (header->p_type == PT_GNU_RELRO) {
			object.relro_start = pm_page_down(object.base + header->p_vaddr);
			object.relro_end = pm_page_down(object.base + header->p_vaddr + header->p_memsz);
		}
	}
	for (; dynamic && dynamic->d_tag != DT_NULL; dynamic++) {
		ElfW(Addr) value = dynamic->d_un.d_ptr;

		/* glibc has added the base to these already, musl has not */
		ElfW(Addr) address = value >= object.base ? value : object.base + value;
		switch (dynamic->d_tag) {
		case DT_SYMTAB: object.symbols = (const void *)address; break;
		case DT_STRTAB: object.strings = (const void *)address; break;
		case DT_JMPREL: jumps = (const void *)address; break;
		case DT_PLTRELSZ: jump_bytes = dynamic->d_un.d_val; break;
		case DT_RELA: data = (const void *)address; break;
		case DT_RELASZ: data_bytes = dynamic->d_un.d_val; break;
		}
	}
	if (object.symbols && object.strings) {
		patch_table(&object, jumps, jump_bytes);
		patch_table(&object, data, data_bytes);
	}
	return 0;
}

void pm_patch_all(const struct pm_hook *its_hooks, size_t count)
{
	Dl_info self;

	if (!its_hooks && !hooks)
		return;
	if (its_hooks) {
		hooks = its_hooks;
		hook_count = count;
		if (dladdr((void *)(uintptr_t)pm_patch_all, &self))
			own_base = self.dli_fbase;
	}
	dl_iterate_phdr(patch_object, NULL);
}
