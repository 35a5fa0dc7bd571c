/* Numbers that look random, and are the same in each run: xorshift64. Each program has its own. */
#ifndef SEALSVC_TESTS_CHANCE_H
#define SEALSVC_TESTS_CHANCE_H

#include <stdint.h>

/* From 0 to below `below`. */
static inline uint64_t chance(uint64_t below)
{
	static uint64_t state = 0x9e3779b97f4a7c15;

	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state % below;
}

#endif
