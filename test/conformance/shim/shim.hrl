%% The body of a distribution module that hands every callback on to another one.
%%
%% A node that is told nothing, or `-proto_dist inet_tcp', loads inet_tcp_dist; one that is told
%% `-proto_dist gen_tcp' loads gen_tcp_dist. With these modules in front of kernel's on the code
%% path, both start CARRIER instead, and OTP's suites run over it without a word changed. README.md
%% says why it is done this way.
%%
%% Optional callbacks that CARRIER lacks stay undefined for the caller as well: net_kernel finds out
%% by `undef'.

-export([childspecs/0, listen/1, listen/2, address/0, address/1, accept/1, accept_connection/5,
         setup/5, select/1, close/1, setopts/2, getopts/2, is_node_name/1]).

-ifndef(CARRIER).
-define(CARRIER, chatter_dist).
-endif.

childspecs() -> ?CARRIER:childspecs().

listen(Name) -> ?CARRIER:listen(Name).

%% net_kernel falls back to listen/1 by itself, but only if no listen/2 is there at all.
listen(Name, Host) ->
    case offers(listen, 2) of
        true -> ?CARRIER:listen(Name, Host);
        false -> ?CARRIER:listen(Name)
    end.

address() -> ?CARRIER:address().

address(Host) -> ?CARRIER:address(Host).

accept(Listen) -> ?CARRIER:accept(Listen).

accept_connection(AcceptPid, Controller, MyNode, Allowed, SetupTime) ->
    ?CARRIER:accept_connection(AcceptPid, Controller, MyNode, Allowed, SetupTime).

setup(Node, Type, MyNode, LongOrShortNames, SetupTime) ->
    ?CARRIER:setup(Node, Type, MyNode, LongOrShortNames, SetupTime).

select(Node) -> ?CARRIER:select(Node).

close(Listen) -> ?CARRIER:close(Listen).

setopts(Listen, Options) -> ?CARRIER:setopts(Listen, Options).

getopts(Listen, Options) -> ?CARRIER:getopts(Listen, Options).

is_node_name(Node) -> ?CARRIER:is_node_name(Node).

offers(Function, Arity) ->
    {module, ?CARRIER} = code:ensure_loaded(?CARRIER),
    erlang:function_exported(?CARRIER, Function, Arity).
