// SPDX-License-Identifier: GPL-2.0-or-later
/* One. */
int region_one(void)
{
	return 1;
}

/* Two. */
int region_two(void)
{
	return 2;
}

/* Three. */
int region_three(void)
{
	return 3;
}
