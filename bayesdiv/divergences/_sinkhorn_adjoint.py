r"""The exact gradient of the sharp transport cost, by the implicit function theorem."""

from bayesdiv._array import Array, array_namespace, identity_like, is_torch_array
from bayesdiv.divergences._sinkhorn_problem import Problem, SinkhornSolution

RIDGE = {32: 1e-6, 64: 1e-12}


def sharp_adjoint(
    hard: tuple[bool, bool], problem: Problem, solution: SinkhornSolution
) -> tuple[Array, Array, Array]:
    r"""Derivatives of :math:`\langle P, C \rangle` in the cost, ``(n, m)``, and in both weights.

    .. math:: \frac{\partial L}{\partial C_{ij}} =
              P_{ij}\Big(1 + \frac{u_i + v_j - C_{ij}}{\epsilon}\Big),
              \qquad
              \begin{bmatrix} (1 + \epsilon/\rho_x)\,\mathrm{diag}(P 1) & P \\
              P^T & (1 + \epsilon/\rho_y)\,\mathrm{diag}(P^T 1) \end{bmatrix}
              \begin{bmatrix} u \\ v \end{bmatrix} =
              \begin{bmatrix} (P \circ C) 1 \\ (P \circ C)^T 1 \end{bmatrix}

    The system differentiates the marginal conditions of the solution. The longer of u and v is
    eliminated. With two hard marginals a constant can move from u to v, which changes nothing; a
    rank-one term fixes it. A ridge keeps plans that are nearly permutations solvable.
    """
    xp = array_namespace(problem.cost)
    dtype = problem.cost.dtype
    # JAX has double precision only where it is switched on, and then the arrays have it already.
    wide = xp.float64 if is_torch_array(problem.cost) else dtype
    plan = xp.astype(solution.plan, wide)
    cost, epsilon = xp.astype(problem.cost, wide), xp.astype(problem.epsilon, wide)
    rows, columns = xp.sum(plan, axis=1), xp.sum(plan, axis=0)
    x_factor = 1.0 + epsilon / xp.astype(problem.x_penalty, wide)
    y_factor = 1.0 + epsilon / xp.astype(problem.y_penalty, wide)
    row_costs, column_costs = xp.sum(plan * cost, axis=1), xp.sum(plan * cost, axis=0)
    has_kernel = hard == (True, True)
    if plan.shape[0] >= plan.shape[1]:
        u, v = _eliminate(
            plan,
            rows * x_factor,
            columns * y_factor,
            row_costs,
            column_costs,
            has_kernel=has_kernel,
        )
    else:
        v, u = _eliminate(
            plan.T,
            columns * y_factor,
            rows * x_factor,
            column_costs,
            row_costs,
            has_kernel=has_kernel,
        )
    slope = plan * (1.0 + (u[:, None] + v - cost) / epsilon)
    x_slope, y_slope = u, v
    if not hard[0]:
        x_slope = u * x_factor * xp.exp(-xp.astype(solution.x_potential, wide) / problem.x_penalty)
    if not hard[1]:
        y_slope = v * y_factor * xp.exp(-xp.astype(solution.y_potential, wide) / problem.y_penalty)
    return xp.astype(slope, dtype), xp.astype(x_slope, dtype), xp.astype(y_slope, dtype)


def _eliminate(
    plan: Array,
    rows: Array,
    columns: Array,
    row_side: Array,
    column_side: Array,
    *,
    has_kernel: bool,
) -> tuple[Array, Array]:
    """Solve ``[diag(rows), plan; planᵀ, diag(columns)] [u; v] = [row_side; column_side]``.

    Samples of weight zero have an empty row or column; their u or v is zero.
    """
    xp = array_namespace(plan)
    inverse = xp.where(rows > 0, 1.0 / xp.where(rows > 0, rows, 1.0), 0.0)
    diagonal = xp.where(columns > 0, columns, 1.0)
    ridge = RIDGE[xp.finfo(plan.dtype).bits] * xp.mean(columns)
    system = identity_like(columns) * (diagonal + ridge) - plan.T @ (inverse[:, None] * plan)
    if has_kernel:
        system = system + columns[:, None] * columns / xp.sum(columns)
    right = column_side - plan.T @ (inverse * row_side)
    v = xp.linalg.solve(system, right[:, None])[:, 0]
    return inverse * (row_side - plan @ v), v
