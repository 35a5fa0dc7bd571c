#include "sealsvc/verdict.h"

static const char *const names[SEAL_OP_COUNT] = SEAL_OP_NAMES;

const char *seal_op_name(int op)
{
	return names[op >= 0 && op < SEAL_OP_COUNT ? op : SEAL_OP_HIDDEN];
}

static uint32_t of_file(const struct seal_traits *traits)
{
	return (traits->reflink ? SEAL_TRAIT_REFLINK : 0) |
	       (traits->atomic ? SEAL_TRAIT_ATOMIC : 0);
}

int seal_conflicts(const struct seal_operation *o, const struct seal_guard *g,
		   const struct seal_traits *t, int by_holder)
{
	uint32_t traits = of_file(t) | (g->exclusive ? SEAL_TRAIT_EXCLUSIVE : 0) |
			  (by_holder ? SEAL_TRAIT_HOLDER : 0) | (g->backed ? SEAL_TRAIT_BACKED : 0);

	return seal_meets((uint32_t)o->op, o->offset, o->length, g->start, g->end, traits);
}

int seal_operation_span(const struct seal_operation *o, const struct seal_traits *t, uint64_t *from,
			uint64_t *last)
{
	return seal_span((uint32_t)o->op, o->offset, o->length, of_file(t), from, last);
}

int seal_changes_maps(int op, const struct seal_traits *traits)
{
	return seal_changes((uint32_t)op, of_file(traits));
}

int seal_rule_meets(uint32_t op, uint64_t offset, uint64_t length, uint64_t start, uint64_t end,
		    uint32_t traits)
{
	return seal_meets(op, offset, length, start, end, traits);
}

int seal_rule_errno(uint32_t policy, int by_holder)
{
	return seal_policy_errno(policy, by_holder);
}

int seal_rule_prevailing(int one, int other)
{
	return seal_prevailing_errno(one, other);
}
