def cases(*, quick):
    return []
