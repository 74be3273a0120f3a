/*
 * random.h
 *		Random numbers for the programs that compare loops.
 */
#ifndef RANDOM_H
#define RANDOM_H

static uint64
random_bits(void)
{
	static uint64 state = UINT64CONST(0x9E3779B97F4A7C15);

	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state;
}

#endif							/* RANDOM_H */
