// SPDX-License-Identifier: GPL-2.0-or-later
/* One. */
int hmem_one(void)
{
	return 1;
}

/* Two. */
int hmem_two(void)
{
	return 2;
}

/* Three. */
int hmem_three(void)
{
	return 3;
}
