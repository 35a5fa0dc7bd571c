/* The pages of a mapping: are they there, and at which place? */
#ifndef SEALSVC_KERNEL_PAGES_H
#define SEALSVC_KERNEL_PAGES_H

#include "sealsvc/validate.h"

struct page_walk {
	const struct seal_mapping_question *question;
	struct seal_mapping_answer *answer;
	int pagemap;
	uint64_t page; /* bytes */
};

/* Judge the pages of one area, a stretch of the file that is mapped at `address`. 0: go on, or look at
 * answer->check; -errno. */
int seal_pages_judge(struct page_walk *walk, uint64_t address, uint64_t offset, uint64_t length);

/* Note the first failure: `expected` and `found` are as the answer's. Always 0. */
static inline int seal_failed(struct seal_mapping_answer *answer, uint32_t check, uint64_t address,
			      uint64_t offset, uint64_t expected, uint64_t found)
{
	answer->check = check;
	answer->address = address;
	answer->offset = offset;
	answer->expected = expected;
	answer->found = found;
	return 0;
}

#endif
