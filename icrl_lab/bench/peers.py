def check(peers):
    pass


def add(*a):
    pass
