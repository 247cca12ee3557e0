"""The truth of each problem of `mini` in math, physics and chem, worked out apart from its data.

`TRUTHS` maps an id to a function of the problem's input files: math gives an integer, a fraction or
an expression's text, physics a number in the asked unit, chem the value or the text of the right
option. What cannot be computed stands in `RECALLED`, with its textbook source in `RECALL`.
"""

from __future__ import annotations

import csv
import io
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from functools import cache

Files = Mapping[str, str]
Truth = int | float | Fraction | str
TRUTHS: dict[str, Callable[[Files], Truth]] = {}


def truth(task_id: str) -> Callable[[Callable[[Files], Truth]], Callable[[Files], Truth]]:
    def register(function: Callable[[Files], Truth]) -> Callable[[Files], Truth]:
        assert task_id not in TRUTHS
        TRUTHS[task_id] = function
        return function

    return register


def numbers(text: str) -> list[list[float]]:
    """The rows of a CSV file of numbers, without its heading."""
    return [[float(cell) for cell in row] for row in list(csv.reader(io.StringIO(text)))[1:]]


def integers(text: str) -> list[list[int]]:
    """The rows of a file of integers parted by blanks."""
    return [[int(word) for word in line.split()] for line in text.splitlines()]


def determinant(rows: Sequence[Sequence[int | Fraction]]) -> Fraction:
    """By elimination over the rationals."""
    matrix = [[Fraction(cell) for cell in row] for row in rows]
    result = Fraction(1)
    for at in range(len(matrix)):
        pivot = next((row for row in range(at, len(matrix)) if matrix[row][at]), None)
        if pivot is None:
            return Fraction(0)
        if pivot != at:
            matrix[at], matrix[pivot] = matrix[pivot], matrix[at]
            result = -result
        result *= matrix[at][at]
        for row in range(at + 1, len(matrix)):
            ratio = matrix[row][at] / matrix[at][at]
            matrix[row] = [a - ratio * b for a, b in zip(matrix[row], matrix[at], strict=True)]
    return result


def laplacian(
    size: int, edges: Iterable[tuple[int, int, Fraction | int]]
) -> list[list[int | Fraction]]:
    """Of a graph on 1..size with weighted edges."""
    matrix: list[list[int | Fraction]] = [[0] * size for _ in range(size)]
    for one, other, weight in edges:
        matrix[one - 1][one - 1] += weight
        matrix[other - 1][other - 1] += weight
        matrix[one - 1][other - 1] -= weight
        matrix[other - 1][one - 1] -= weight
    return matrix


def minor(matrix: Sequence[Sequence[int | Fraction]], *left_out: int) -> list[list[int | Fraction]]:
    """Without the rows and columns of these numbers (from 1)."""
    kept = [at for at in range(len(matrix)) if at + 1 not in left_out]
    return [[matrix[row][column] for column in kept] for row in kept]


def bisect(function: Callable[[float], float], low: float, high: float) -> float:
    """A zero of a function that changes its sign between the bounds."""
    rising = function(high) > 0
    for _ in range(200):
        middle = (low + high) / 2
        if (function(middle) > 0) == rising:
            high = middle
        else:
            low = middle
    return (low + high) / 2


def simpson(function: Callable[[float], float], low: float, high: float, parts: int) -> float:
    """Simpson's rule on an even number of parts."""
    step = (high - low) / parts
    inner = sum((4 if at % 2 else 2) * function(low + at * step) for at in range(1, parts))
    return (function(low) + inner + function(high)) * step / 3


def fitted_line(points: Sequence[tuple[float, float]]) -> tuple[float, float, float]:
    """Slope, intercept and the squared correlation of ordinary least squares."""
    n = len(points)
    mean_x = math.fsum(x for x, _ in points) / n
    mean_y = math.fsum(y for _, y in points) / n
    sxx = math.fsum((x - mean_x) ** 2 for x, _ in points)
    sxy = math.fsum((x - mean_x) * (y - mean_y) for x, y in points)
    syy = math.fsum((y - mean_y) ** 2 for _, y in points)
    return sxy / sxx, mean_y - sxy / sxx * mean_x, sxy**2 / (sxx * syy)


# Math


@truth("mini-math-01")
def spanning_trees(files: Files) -> Truth:
    edges = [(a, b, 1) for a, b in integers(files["edges.txt"])]
    return int(determinant(minor(laplacian(13, edges), 13)))


@truth("mini-math-02")
def reciprocal_pairs(files: Files) -> Truth:
    return sum(
        1
        for x in range(61, 60 + 5400 + 1)
        if (90 * x) % (x - 60) == 0  # y = 90 x / (x - 60)
    )


@truth("mini-math-04")
def wide_permutations(files: Files) -> Truth:
    @cache
    def ways(used: int, last: int) -> int:
        if used == (1 << 11) - 1:
            return 1
        return sum(
            ways(used | 1 << at, at)
            for at in range(11)
            if not used >> at & 1 and abs(at - last) >= 3
        )

    return sum(ways(1 << at, at) for at in range(11))


@truth("mini-math-05")
def centres(files: Files) -> Truth:
    a, b, c = 13, 20, 21
    s = Fraction(a + b + c, 2)
    area = math.isqrt(int(s * (s - a) * (s - b) * (s - c)))
    # By coordinates rather than by Euler's formula: B at the origin, C at (a, 0).
    x = Fraction(a * a + c * c - b * b, 2 * a)
    y = Fraction(2 * area, a)
    incentre = (Fraction(a * x + c * a) / (2 * s), Fraction(a * y) / (2 * s))
    circumcentre = (Fraction(a, 2), (x * x + y * y - a * x) / (2 * y))
    return sum((p - q) ** 2 for p, q in zip(incentre, circumcentre, strict=True))


@truth("mini-math-07")
def digit_sum(files: Files) -> Truth:
    return sum(map(int, str(3**1000 * 7**777)))


@truth("mini-math-08")
def fifth_powers(files: Files) -> Truth:
    companion = [[4, -5, 7], [1, 0, 0], [0, 1, 0]]
    power = companion
    for _ in range(4):
        power = [
            [sum(row[k] * companion[k][j] for k in range(3)) for j in range(3)] for row in power
        ]
    return sum(power[at][at] for at in range(3))


@truth("mini-math-09")
def capped_game(files: Files) -> Truth:
    pay = sum(Fraction(1, 2**toss) * 2**toss for toss in range(1, 41))
    return int(pay)


@truth("mini-math-10")
def paths_in_grid(files: Files) -> Truth:
    steps = ((1, 0), (-1, 0), (0, 1), (0, -1))

    def walk(x: int, y: int, seen: frozenset[tuple[int, int]]) -> int:
        if (x, y) == (5, 6):
            return 1
        return sum(
            walk(x + dx, y + dy, seen | {(x + dx, y + dy)})
            for dx, dy in steps
            if 1 <= x + dx <= 5 and 1 <= y + dy <= 6 and (x + dx, y + dy) not in seen
        )

    return walk(1, 1, frozenset({(1, 1), (3, 3)}))


@truth("mini-math-11")
def tower_remainder(files: Files) -> Truth:
    return pow(2, 3**2026, 1001)


@truth("mini-math-13")
def half_periods(files: Files) -> Truth:
    def period(prime: int) -> int:
        length, power = 1, 10 % prime
        while power != 1:
            length, power = length + 1, power * 10 % prime
        return length

    found = (n for n in range(7, 5000) if all(n % d for d in range(2, math.isqrt(n) + 1)))
    return sum(1 for prime in found if 2 * period(prime) == prime - 1)


@truth("mini-math-14")
def cube_colourings(files: Files) -> Truth:
    # Faces: 0 up, 1 down, 2 north, 3 south, 4 east, 5 west; two quarter turns make the group.
    turns = ((0, 1, 4, 5, 3, 2), (4, 5, 2, 3, 1, 0))
    group = {tuple(range(6))}
    while True:
        larger = group | {tuple(one[at] for at in turn) for one in group for turn in turns}
        if larger == group:
            break
        group = larger
    assert len(group) == 24
    colourings = {c for c in itertools.product(range(4), repeat=6) if len(set(c)) == 4}
    return len({min(tuple(c[at] for at in turn) for turn in group) for c in colourings})


@truth("mini-math-15")
def unstable_recurrence(files: Files) -> Truth:
    before, now = Fraction(5, 2), Fraction(13, 5)
    for _ in range(60):
        before, now = now, 55 - 256 / now + 300 / (now * before)
    assert abs(now - 3) < Fraction(1, 10**9)
    return round(now)


@truth("mini-math-16")
def blocked_paths(files: Files) -> Truth:
    blocked = {(a, b) for a, b in integers(files["blocked.txt"])}

    @cache
    def ways(x: int, y: int) -> int:
        if x < 0 or y < 0 or (x, y) in blocked:
            return 0
        return 1 if (x, y) == (0, 0) else ways(x - 1, y) + ways(x, y - 1)

    return ways(18, 18)


@truth("mini-math-17")
def polynomial_integral(files: Files) -> Truth:
    # x^3 (1-x)^5 (2-x), term by term.
    total = Fraction(0)
    for k in range(6):
        total += math.comb(5, k) * (Fraction(2, k + 4) - Fraction(1, k + 5)) * (1 - k % 2 * 2)
    return total


@truth("mini-math-19")
def dice_split(files: Files) -> Truth:
    rolls = (sorted(roll) for roll in itertools.product(range(1, 7), repeat=6))
    good = sum(1 for roll in rolls if sum(roll[3:]) == 2 * sum(roll[:3]))
    return Fraction(good, 6**6)


@truth("mini-math-20")
def gambler(files: Files) -> Truth:
    # h(k) = 2/3 h(k+1) + 1/3 h(k-1): scale a solution from h(0) = 0, h(1) = 1 to h(10) = 1.
    h = [Fraction(0), Fraction(1)]
    while len(h) <= 10:
        h.append((h[-1] - h[-2] / 3) * 3 / 2)
    return h[3] / h[10]


@truth("mini-math-22")
def square_sums(files: Files) -> Truth:
    squares = {n * n for n in range(200)}
    return sum(
        1
        for a, b, c in itertools.combinations(range(1, 101), 3)
        if a * a + b * b + c * c in squares
    )


@truth("mini-math-23")
def subset_spreads(files: Files) -> Truth:
    return sum(
        max(chosen) - min(chosen)
        for size in range(1, 11)
        for chosen in itertools.combinations(range(1, 11), size)
    )


@truth("mini-math-24")
def file_determinant(files: Files) -> Truth:
    return int(determinant(integers(files["matrix.txt"])))


@truth("mini-math-25")
def cycle_length(files: Files) -> Truth:
    seen: dict[int, int] = {}
    x = 1
    while x not in seen:
        seen[x] = len(seen)
        x = (x * x + 12345) % 1_000_003
    return len(seen) - seen[x]


# Physics: numbers in the asked unit

G = 9.81


@truth("mini-physics-01")
def drag_range(files: Files) -> Truth:
    mass, k, step = 0.145, 0.0012, 0.0005

    def slope(state: tuple[float, ...]) -> tuple[float, ...]:
        _, _, vx, vy = state
        drag = k / mass * math.hypot(vx, vy)
        return vx, vy, -drag * vx, -G - drag * vy

    def moved(state: tuple[float, ...], by: tuple[float, ...], h: float) -> tuple[float, ...]:
        return tuple(s + h * b for s, b in zip(state, by, strict=True))

    angle = math.radians(40)
    state: tuple[float, ...] = (0.0, 0.0, 40 * math.cos(angle), 40 * math.sin(angle))
    before = state
    while state[1] >= 0:
        before = state
        k1 = slope(state)
        k2 = slope(moved(state, k1, step / 2))
        k3 = slope(moved(state, k2, step / 2))
        k4 = slope(moved(state, k3, step))
        by = tuple((a + 2 * b + 2 * c + d) / 6 for a, b, c, d in zip(k1, k2, k3, k4, strict=True))
        state = moved(state, by, step)
    share = before[1] / (before[1] - state[1])
    return before[0] + share * (state[0] - before[0])


@truth("mini-physics-02")
def otto(files: Files) -> Truth:
    return 1 - 9 ** (1 - 1.4)


@truth("mini-physics-03")
def friction_at_rest(files: Files) -> Truth:
    along, most = (4 * G * f(math.radians(20)) for f in (math.sin, lambda x: 0.6 * math.cos(x)))
    assert along < most  # the block stays
    return along


@truth("mini-physics-04")
def pendulum_fit(files: Files) -> Truth:
    rows = numbers(files["pendulum.csv"])
    slope, _, _ = fitted_line([(length, (swings / 20) ** 2) for length, swings in rows])
    return 4 * math.pi**2 / slope


@truth("mini-physics-05")
def echo_beats(files: Files) -> Truth:
    return 680 * 340 / (340 - 12) - 680 * 340 / (340 + 12)


@truth("mini-physics-07")
def network_resistance(files: Files) -> Truth:
    rows = integers(files["resistors.txt"])
    matrix = laplacian(9, [(a, b, Fraction(1, ohms)) for a, b, ohms in rows])
    return float(determinant(minor(matrix, 1, 9)) / determinant(minor(matrix, 9)))


@truth("mini-physics-08")
def two_lenses(files: Files) -> Truth:
    first = 1 / (1 / 12 - 1 / 18)
    return 1 / (1 / -20 - 1 / (30 - first))


@truth("mini-physics-10")
def large_swing(files: Files) -> Truth:
    one, other = 1.0, math.cos(math.radians(150) / 2)
    for _ in range(50):
        one, other = (one + other) / 2, math.sqrt(one * other)
    return 2 * math.pi * math.sqrt(1.5 / G) / one


@truth("mini-physics-11")
def rolling_speed(files: Files) -> Truth:
    return math.sqrt(2 * G * 1.4 / (1 + 2 / 5))


@truth("mini-physics-12")
def free_expansion(files: Files) -> Truth:
    heat = work = 0.0  # no wall moves, no heat passes; the energy depends on temperature alone
    return 300 + (heat - work)


@truth("mini-physics-13")
def visible_share(files: Files) -> Truth:
    low, high = (0.014388 / (nm * 1e-9 * 5800) for nm in (700, 400))
    part = simpson(lambda x: x**3 / math.expm1(x), low, high, 2000)
    return part * 15 / math.pi**4


@truth("mini-physics-14")
def discharge(files: Files) -> Truth:
    return 47e3 * 220e-6 * math.log(12 / 3)


@truth("mini-physics-16")
def potential(files: Files) -> Truth:
    rows = numbers(files["charges.csv"])
    return math.fsum(
        8.988e9 * charge * 1e-9 / (math.dist((x, y, z), (10, -5, 20)) / 100)
        for x, y, z, charge in rows
    )


@truth("mini-physics-17")
def proton_energy(files: Files) -> Truth:
    return (1 / math.sqrt(1 - 0.8**2) - 1) * 938.272


@truth("mini-physics-19")
def orbit_distance(files: Files) -> Truth:
    mean = 2 * math.pi * 4000 / 28_000
    anomaly = bisect(lambda x: x - 0.6 * math.sin(x) - mean, 0, math.pi)
    return 2_000 * (1 - 0.6 * math.cos(anomaly))


@truth("mini-physics-20")
def helium_line(files: Files) -> Truth:
    return 1e9 / (1.0973731e7 * 4 * (1 / 4 - 1 / 25))


@truth("mini-physics-22")
def ising_energy(files: Files) -> Truth:
    sites = list(itertools.product(range(3), range(4)))
    at = {site: number for number, site in enumerate(sites)}
    bonds = [(at[x, y], at[to]) for x, y in sites for to in (((x + 1) % 3, y), (x, (y + 1) % 4))]
    total = weighted = 0.0
    for spins in itertools.product((-1, 1), repeat=12):
        energy = -sum(spins[a] * spins[b] for a, b in bonds)
        weight = math.exp(-energy / 2.5)
        total, weighted = total + weight, weighted + energy * weight
    return weighted / total / 12


@truth("mini-physics-23")
def distance_driven(files: Files) -> Truth:
    rows = numbers(files["speed.csv"])
    return math.fsum((t2 - t1) * (v1 + v2) / 2 for (t1, v1), (t2, v2) in itertools.pairwise(rows))


@truth("mini-physics-24")
def well_ground_state(files: Files) -> Truth:
    depth, width, unit = 10.0, 0.5, 0.0381

    def mismatch(energy: float) -> float:
        wave = math.sqrt(energy / unit)
        return wave * math.tan(wave * width / 2) - math.sqrt((depth - energy) / unit)

    return bisect(mismatch, 1e-9, unit * (math.pi / width) ** 2 - 1e-9)


@truth("mini-physics-25")
def disc_with_hole(files: Files) -> Truth:
    cut = Fraction(1, 4)  # its mass in M; its radius and its centre's distance are R/2
    left = Fraction(1, 2) - (cut / 2 + cut) * Fraction(1, 2) ** 2
    return f"{left.numerator}*M*R^2/{left.denominator}"


# Chem: the value, or the text, of the right option

WEIGHTS = {"H": 1.008, "C": 12.011, "N": 14.007, "O": 15.999, "Al": 26.982, "S": 32.06,
           "Cl": 35.45, "Ca": 40.078}  # fmt: skip
"""Abridged standard atomic weights (IUPAC)."""
R = 8.314462618


@truth("mini-chem-01")
def combustion_formula(files: Files) -> Truth:
    sample, dioxide, water, nitrogen = 0.4504, 0.7702, 0.1802, 0.1401
    carbon = dioxide / 44.009
    hydrogen = 2 * water / 18.015
    azote = 2 * nitrogen / 28.014
    rest = sample - carbon * WEIGHTS["C"] - hydrogen * WEIGHTS["H"] - azote * WEIGHTS["N"]
    moles = {"C": carbon, "H": hydrogen, "N": azote, "O": rest / WEIGHTS["O"]}
    for scale in range(1, 12):
        counts = {name: n * scale / moles["O"] for name, n in moles.items()}
        if all(abs(count - round(count)) < 0.04 * scale for count in counts.values()):
            break
    return "".join(f"{name}{round(n) if round(n) > 1 else ''}" for name, n in counts.items())


@truth("mini-chem-02")
def silver_zinc_cell(files: Files) -> Truth:
    quotient = 0.0050 / 0.20**2
    return 0.7996 + 0.7618 - R * 298.15 / (2 * 96485.332) * math.log(quotient)


def acid_charge(ph: float, total: float, pkas: Sequence[float]) -> float:
    """Negative charge that a polyprotic acid of this total concentration carries, in mol/L."""
    hydrogen = 10**-ph
    terms = [1.0]
    for pka in pkas:
        terms.append(terms[-1] * 10**-pka / hydrogen)
    return total * sum(n * term for n, term in enumerate(terms)) / sum(terms)


@truth("mini-chem-04")
def partly_neutralised(files: Files) -> Truth:
    volume = 25.0 + 30.0
    sodium, acid = 30.0 * 0.1 / volume, 25.0 * 0.1 / volume
    return bisect(
        lambda ph: 10 ** (ph - 14) + acid_charge(ph, acid, (3.60, 4.20, 4.80)) - sodium - 10**-ph,
        0,
        14,
    )


@truth("mini-chem-05")
def gas_of_density(files: Files) -> Truth:
    mass = 2.424 * R * 298.15 / 100.0
    c, h, o, s = (WEIGHTS[name] for name in "CHOS")
    gases = {"CO2": c + 2 * o, "COS": c + o + s, "SO2": s + 2 * o, "C4H10": 4 * c + 10 * h}
    return min(gases, key=lambda name: abs(gases[name] - mass))


@truth("mini-chem-07")
def titrated_acid(files: Files) -> Truth:
    rows = numbers(files["titration.csv"])
    steps = [
        ((b[1] - a[1]) / (b[0] - a[0]), (a[0] + b[0]) / 2) for a, b in itertools.pairwise(rows)
    ]
    return max(steps)[1] * 0.1042 / 20.00


@truth("mini-chem-08")
def freezing_point(files: Files) -> Truth:
    salt = 5.00 / (WEIGHTS["Ca"] + 2 * WEIGHTS["Cl"])
    return -1.86 * 3 * salt / 0.150


@truth("mini-chem-10")
def rate_law(files: Files) -> Truth:
    rows = numbers(files["kinetics.csv"])
    forms: dict[str, Callable[[float], float]] = {
        "zero order": lambda c: -c,
        "first order": lambda c: -math.log(c),
        "second order": lambda c: 1 / c,
    }
    fits = {name: fitted_line([(t, form(c)) for t, c in rows]) for name, form in forms.items()}
    best = max(fits, key=lambda name: fits[name][2])
    unit = {"zero order": "mol/(L s)", "first order": "1/s", "second order": "L/(mol s)"}[best]
    return f"{best}, k = {fits[best][0]:.3f} {unit}"


@truth("mini-chem-11")
def buffered(files: Files) -> Truth:
    return 4.76 + math.log10((0.20 + 0.05) / (0.30 - 0.05))


@truth("mini-chem-13")
def coefficient_sum(files: Files) -> Truth:
    left = ({"As": 2, "S": 3}, {"Na": 1, "N": 1, "O": 3}, {"Na": 2, "C": 1, "O": 3})
    right = (
        {"Na": 3, "As": 1, "O": 4},
        {"Na": 2, "S": 1, "O": 4},
        {"Na": 1, "N": 1, "O": 2},
        {"C": 1, "O": 2},
    )
    for sulfide, nitrate, carbonate in itertools.product(range(1, 30), repeat=3):
        given: Counter[str] = Counter()
        for count, species in zip((sulfide, nitrate, carbonate), left, strict=True):
            given.update({name: count * n for name, n in species.items()})
        made = (given["As"], given["S"], given["N"], given["C"])
        got: Counter[str] = Counter()
        for count, species in zip(made, right, strict=True):
            got.update({name: count * n for name, n in species.items()})
        if got == given:
            return sulfide + nitrate + carbonate + sum(made)
    raise AssertionError("no coefficients below 30")


@truth("mini-chem-14")
def propane_formation(files: Files) -> Truth:
    return 3 * -393.5 + 4 * -285.8 - -2219.2


@truth("mini-chem-16")
def isotope_share(files: Files) -> Truth:
    bromine, chlorine = (0.5069, 0.4931), (0.7576, 0.2424)
    atoms = (bromine,) * 2 + (chlorine,) * 3
    return 100 * math.fsum(
        math.prod(atom[at] for atom, at in zip(atoms, heavy, strict=True))
        for heavy in itertools.product((0, 1), repeat=5)
        if sum(heavy) == 2
    )


@truth("mini-chem-17")
def activation_energy(files: Files) -> Truth:
    return R * math.log(3) / (1 / 293.15 - 1 / 307.15) / 1000


@truth("mini-chem-19")
def bromides(files: Files) -> Truth:
    @cache
    def alkyls(carbons: int) -> int:
        """Rooted trees of this many carbons with at most three branches at each."""
        if carbons == 0:
            return 1
        return sum(
            ways(Counter(sizes))
            for sizes in itertools.combinations_with_replacement(range(carbons), 3)
            if sum(sizes) == carbons - 1
        )

    def ways(sizes: Counter[int]) -> int:
        return math.prod(math.comb(alkyls(n) + times - 1, times) for n, times in sizes.items())

    return alkyls(7)


@truth("mini-chem-20")
def chloride_mass(files: Files) -> Truth:
    moles = min(10.0 / WEIGHTS["Al"], 35.0 / (2 * WEIGHTS["Cl"]) * 2 / 3)
    return moles * (WEIGHTS["Al"] + 3 * WEIGHTS["Cl"])


@truth("mini-chem-21")
def very_dilute_acid(files: Files) -> Truth:
    # Charge balance with the water's own ions.
    return -math.log10((1e-8 + math.sqrt(1e-16 + 4e-14)) / 2)


@truth("mini-chem-22")
def ammonia_share(files: Files) -> Truth:
    def surplus(x: float) -> float:
        total = 4 - 2 * x
        nitrogen, hydrogen, ammonia = (200 * n / total for n in (1 - x, 3 - 3 * x, 2 * x))
        return ammonia**2 - 1.6e-4 * nitrogen * hydrogen**3

    x = bisect(surplus, 0, 1)
    return 100 * 2 * x / (4 - 2 * x)


@truth("mini-chem-23")
def fluoride_solubility(files: Files) -> Truth:
    return bisect(lambda s: s * (0.050 + 2 * s) ** 2 - 3.9e-11, 0, 1e-3)


@truth("mini-chem-24")
def peptide_ion(files: Files) -> Truth:
    rows = list(csv.DictReader(io.StringIO(files["residues.csv"])))
    masses = {row["residue"]: float(row["mass_u"]) for row in rows}
    neutral = math.fsum(masses[letter] for letter in files["peptide.txt"].strip()) + 18.01056
    return (neutral + 2 * 1.00728) / 2


@truth("mini-chem-25")
def formulas_in_window(files: Files) -> Truth:
    ranges = range(1, 21), range(43), range(7), range(13)
    masses = (
        12 * c + 1.007825 * h + 14.003074 * n + 15.994915 * o
        for c, h, n, o in itertools.product(*ranges)
    )
    return sum(1 for mass in masses if 180.060 <= mass <= 180.070)


# What no code here can work out: the answer (of a choice the option's text), and where it stands

RECALLED: dict[str, str | tuple[str, ...]] = {
    "mini-math-03": str(1 + 2 + 16),
    "mini-math-06": "196560",
    "mini-math-12": str(1 + 8 + 64),
    "mini-math-18": "51",
    "mini-math-21": "92",
    "mini-physics-06": "silver",
    "mini-physics-09": "True",
    "mini-physics-15": "It leans towards the axis of the turntable.",
    "mini-physics-18": "False",
    "mini-physics-21": "The stored energy falls, and the slab is drawn in.",
    "mini-chem-03": "nitrogen",
    "mini-chem-06": ("SF4", "ClF3"),
    "mini-chem-09": "2-methylbut-1-ene",
    "mini-chem-12": ("the cyclopentadienyl anion", "the cycloheptatrienyl cation"),
    "mini-chem-15": "barium",
    "mini-chem-18": ("Al(OH)3", "Zn(OH)2", "Pb(OH)2"),
}

RECALL: dict[str, str] = {
    "mini-math-03": "Rudin, Principles of Mathematical Analysis: 5.12 (Darboux), 11.33 (Lebesgue's "
    "criterion); false: (-1)^n / sqrt(n), sqrt((x - 1/2)^2 + 1/n), the Cantor set",
    "mini-math-06": "Conway and Sloane, Sphere Packings, Lattices and Groups, table 1.5; the proof "
    "by Levenshtein and by Odlyzko and Sloane, 1979 (the Leech lattice)",
    "mini-math-12": "Dummit and Foote, Abstract Algebra: 7.1 (finite domains), 4.5 (order pq), 8.2 "
    "((2, x) in Z[x]); Horn and Johnson, Matrix Analysis: 1.3.22 (AB and BA); false: S3, "
    "[[0, 1], [0, 0]] and 0, diag(0, -1)",
    "mini-math-18": "Hall and Senior, The Groups of Order 2^n (n <= 6), 1964; OEIS A000001",
    "mini-math-21": "Johnson 1966, Convex polyhedra with regular faces; complete by Zalgaller 1969",
    "mini-physics-06": "Gerlach and Stern, Zeitschrift fuer Physik 9 (1922): beams of silver",
    "mini-physics-09": "E = -GMm/(2r) and v^2 = GM/r, so a smaller r has a larger v; any text on "
    "satellite drag",
    "mini-physics-15": "Buoyancy acts against the apparent gravity, which leans outwards: what is "
    "lighter than water goes inwards, as in a centrifuge",
    "mini-physics-18": "Callen, Thermodynamics: the entropy of a thermally isolated "
    "system cannot fall; one that gives off heat may lose entropy",
    "mini-physics-21": "Griffiths, Introduction to Electrodynamics, 4.4: Q fixed, C grows, "
    "W = Q^2/(2C) falls, the slab is pulled in",
    "mini-chem-03": "NIST first ionisation energies, eV: B 8.298, C 11.260, N 14.534, O 13.618",
    "mini-chem-06": "VSEPR: SF4 is a see-saw and ClF3 a T; XeF4 is square, BF3 trigonal planar",
    "mini-chem-09": "Hofmann orientation: tert-butoxide takes the less hindered hydrogen "
    "(Clayden, Greeves and Warren, Organic Chemistry, on elimination)",
    "mini-chem-12": "Hueckel: six pi electrons in C5H5- and C7H7+; cyclobutadiene has four, and "
    "cyclooctatetraene eight in a tub",
    "mini-chem-15": "Flame tests: Ba apple-green, Sr crimson, Ca orange-red, K lilac",
    "mini-chem-18": "Vogel's Qualitative Inorganic Analysis: Al, Zn and Pb(II) hydroxides dissolve "
    "in excess alkali, calcium hydroxide does not",
}
